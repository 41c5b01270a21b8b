#!/usr/bin/env bash
# make test-servers: servers that are not vLLM, real ones included, installed outside the repository where they are missing.
# QWENBENCH_SERVERS_HOME says where (default ~/.cache/qwenbench/test-servers): 1 GB.
# transformers serve is tried where `make test-vllm` has installed it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/qwenbench
export QWENBENCH_SERVERS_HOME=${QWENBENCH_SERVERS_HOME:-$cache/test-servers}
export QWENBENCH_VLLM_HOME=${QWENBENCH_VLLM_HOME:-$cache/vllm-cpu}
tests/servers/setup.sh "$QWENBENCH_SERVERS_HOME"
exec .venv/bin/python -m pytest tests/servers --timeout 900 "$@"
