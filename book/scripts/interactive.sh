#!/bin/bash
# A node for two hours with JupyterLab on it. Prints the tunnel to open from your own machine.
#   bash book/scripts/interactive.sh [hours] [options of srun, which take precedence]
#   bash book/scripts/interactive.sh 4 --partition=gpu --account=stars --gres=gpu:a100:1
# The server is bound to the node itself, through which the tunnel goes. Where users may not log in to nodes,
# BIND=node lets the login node reach it, and any user there who has the token.
set -euo pipefail
hours=2
if [[ ${1:-} =~ ^[0-9]+$ ]]; then hours=$1; shift; fi
exec srun --gres=gpu:1 --cpus-per-task=8 --mem=32G --time="$hours:00:00" "$@" --pty bash -c '
  source .venv/bin/activate
  lensml preflight
  port=$((20000 + RANDOM % 20000))
  node=$(hostname) ip=127.0.0.1
  if [ "${BIND:-}" = node ]; then ip=$node; fi
  echo "on your machine, then open the address below:"
  if [ "$ip" = "$node" ]; then echo "  ssh -N -L $port:$node:$port <login node>"
  else echo "  ssh -N -J <login node> -L $port:localhost:$port $node"; fi
  exec jupyter lab --no-browser --ip="$ip" --port=$port notebooks'
