#!/usr/bin/env bash
# setup.sh FOLDER: an environment with Ray beside what qwenbench needs, apart from .venv; qwenbench itself comes from
# the checkout (PYTHONPATH). A second call is instant. About 500 MB.
set -euo pipefail

folder=${1:?usage: setup.sh FOLDER}
python=${PYTHON:-python3}
ray=2.60.0
lock=$(dirname "${BASH_SOURCE[0]}")/../../requirements-dev.lock
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
made=$folder/.made-client-$ray-$(sha256sum "$lock" | cut -c1-16)
[ -e "$made" ] && exit
echo "test-cluster: making an environment with Ray $ray in $folder ..."
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/python" -m pip -qq install --no-cache-dir --require-hashes -r "$lock"
"$folder/bin/python" -m pip -qq install --no-cache-dir "ray[client]==$ray"
touch "$made"
