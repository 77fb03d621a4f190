#!/usr/bin/env bash
# Makes the environment that all users of a hub use: lensml as a wheel of this checkout, and hub/requirements.txt.
#   hub/install.sh FOLDER                            PyTorch as constraints.txt pins it: on Linux, for CUDA
#   hub/install.sh FOLDER --index-url <index>        PyTorch of another index: for CPUs, ROCm, or an older CUDA
# FOLDER is outside of home folders, for instance /opt/lensml; no user needs to write there. PYTHON names another Python.
set -eu
umask 022
folder=${1:?name a folder: hub/install.sh /opt/lensml}
shift
cd "$(dirname "$0")/.."
"${PYTHON:-python3}" -m venv "$folder"
folder=$(cd "$folder" && pwd)
pip=("$folder/bin/python" -m pip --disable-pip-version-check --no-cache-dir)
pins=$folder/constraints.txt
cp constraints.txt "$pins"
if [ $# -gt 0 ]; then
  grep -v -e '^torch==' -e '^triton==' constraints.txt >"$pins"
  "${pip[@]}" install torch "$@"
fi
"${pip[@]}" install -c "$pins" '.[notebooks]'
"${pip[@]}" install -c "$pins" -r hub/requirements.txt # by itself: in one command pip searches for very long
mkdir -p "$folder/etc"
if [ -e .git ]; then # the filter of the Makefile, for every clone of a user; the hub's settings include this file
  GIT_CONFIG=$folder/etc/gitconfig make --no-print-directory notebook-filter RUN="$folder/bin/python"
fi
"$folder/bin/lensml" --version
