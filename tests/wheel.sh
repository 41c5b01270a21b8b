#!/usr/bin/env bash
# The package as a stranger gets it: a wheel, built, installed beside nothing else, run outside the repository.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$here/.venv/bin/python" -m pip -qq wheel --no-deps --no-build-isolation --wheel-dir "$work" "$here"
"$here/.venv/bin/python" -m venv "$work/env"
"$work/env/bin/python" -m pip -qq install --require-hashes -r "$here/requirements.lock"
"$work/env/bin/python" -m pip -qq install --no-deps "$work"/qwenbench-*.whl
cd "$work"
export PATH="$work/env/bin:$PATH"
qwenbench --version
qwenbench --help >help.txt
qwenbench deployment list >deployments.txt
qwenbench prompts list >sets.txt
qwenbench plan --card rtx-5090 --capture 64 --max-num-seqs 64 --gpu-memory-utilization 0.95 --vllm 0.20.2 --json >plan.json
qwenbench sweep --launcher sim --capture 16 --scenario math --concurrency 2 --output-tokens 4-8 --requests 4 --port 18650 --out runs --run-id wheel
test -s runs/wheel/points.csv && test -s runs/wheel/report.html
python - <<'PY'
import json, pathlib, qwenbench
assert "site-packages" in qwenbench.__file__, qwenbench.__file__
assert json.loads(pathlib.Path("plan.json").read_text())["kv_cache_gib"] > 0
assert pathlib.Path("deployments.txt").read_text().strip() and pathlib.Path("sets.txt").read_text().strip()
PY
echo "wheel: $(basename "$work"/qwenbench-*.whl) installs and runs outside the repository"
