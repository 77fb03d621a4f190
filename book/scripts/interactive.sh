#!/bin/bash
# A GPU node for two hours with JupyterLab on it. Prints the tunnel to open from your own machine.
#   bash book/scripts/interactive.sh [hours]
set -euo pipefail
hours=${1:-2}
exec srun --gres=gpu:1 --cpus-per-task=8 --mem=32G --time="$hours:00:00" --pty bash -c '
  source .venv/bin/activate
  lensml preflight
  port=$((20000 + RANDOM % 20000))
  echo "on your machine: ssh -N -L $port:$(hostname):$port <login node>   then open the address below"
  exec jupyter lab --no-browser --ip="$(hostname)" --port=$port notebooks'
