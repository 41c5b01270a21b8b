#!/usr/bin/env bash
# setup.sh FOLDER: what recipes/nvfp4/requirements.lock names, with PyTorch's CPU build in place of the CUDA one, in
# FOLDER/venv. About 1.5 GB; a second call is instant.
# The CPU build is looked for wherever pip looks; where that finds none, point pip at PyTorch's own CPU index
# (PIP_EXTRA_INDEX_URL) or at a folder that holds the wheel (PIP_FIND_LINKS).
set -euo pipefail

folder=${1:?usage: setup.sh FOLDER}
lock=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../recipes/nvfp4" && pwd)/requirements.lock
stamp=$folder/.ready-$(cksum <"$lock" | cut -d' ' -f1)

[ -e "$stamp" ] && exit 0
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "Installing llm-compressor for CPUs into $folder (about 1.5 GB) ..."
rm -rf "$folder/venv"
"${PYTHON:-python3}" -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip -qq install uv
torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$lock")
"$python" -m pip -qq download --no-deps --dest "$work/wheels" "torch==$torch+cpu" || {
  echo "setup.sh: no torch $torch+cpu for this Python where pip looks: set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS" >&2
  exit 1
}
# the lock's own versions, but nothing of CUDA
sed -n 's/^\([a-z0-9._-]*==[^ ]*\)\( ;[^\\]*\)\{0,1\}.*/\1\2/p' "$lock" |
  grep -vE '^(torch|triton|nvidia-(c|n[cv])|cuda-)' >"$work/locked.txt"
"$folder/venv/bin/uv" pip install --quiet --python "$python" --no-deps -r "$work/locked.txt"
"$folder/venv/bin/uv" pip install --quiet --python "$python" --no-deps "$work/wheels"/torch-*.whl
touch "$stamp"
