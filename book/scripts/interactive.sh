#!/bin/bash
# A node for two hours with JupyterLab on it. Prints the tunnel to open from your own machine.
#   bash book/scripts/interactive.sh [hours] [options of srun, which take precedence]
#   bash book/scripts/interactive.sh 4 --partition=gpu --account=stars --gres=gpu:a100:1
# Where nodes cannot be reached by name, go through the login node: `ssh -J <login node> ...`, as printed.
set -euo pipefail
hours=2
if [[ ${1:-} =~ ^[0-9]+$ ]]; then hours=$1; shift; fi
exec srun --gres=gpu:1 --cpus-per-task=8 --mem=32G --time="$hours:00:00" "$@" --pty bash -c '
  source .venv/bin/activate
  lensml preflight
  port=$((20000 + RANDOM % 20000))
  echo "on your machine: ssh -N -L $port:$(hostname):$port <login node>   then open the address below"
  echo "or, if only the node itself answers: ssh -N -J <login node> -L $port:localhost:$port $(hostname)"
  exec jupyter lab --no-browser --ip="$(hostname)" --port=$port notebooks'
