#!/usr/bin/env bash
# make test-recipe: installs llm-compressor for CPUs outside the repository, where it is missing, and quantises a tiny
# hybrid with it. QWENBENCH_RECIPE_HOME says where (default ~/.cache/qwenbench/recipe). 1.5 GB of disk, 3 GB of memory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export QWENBENCH_RECIPE_HOME=${QWENBENCH_RECIPE_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/qwenbench/recipe}
tests/recipe/setup.sh "$QWENBENCH_RECIPE_HOME"
exec .venv/bin/python -m pytest tests/recipe --timeout 900 "$@"
