#!/bin/bash
# The same model in bfloat16 and in NVFP4 on a real card: weights, cache and tokens/s side by side.
#
#     tests/gpu/quantised.sh BF16 NVFP4 OUT
#
# BF16, NVFP4: model folders; OUT: where the run folders bf16 and nvfp4 go. A run that is there is continued. A hybrid
# of Qwen3.5's shape with random weights, and its NVFP4 checkpoint (both made without a card, by the recipe's packages):
#
#     python tests/recipe/build_hybrid.py hybrid 24 1024
#     python recipes/nvfp4/quantize.py --model hybrid --calibration seed.jsonl --samples-per-set 8 --out hybrid-nvfp4
#
# vLLM comes from the environment, as in campaign.sh: VLLM_COMMAND, VLLM_ARGS. Random weights in files are not seen to
# be random: --no-natural-stop-check is given, so their answers are not looked at. For a model whose answers mean
# something set TEXT=1: canary and natural stop are on then. LAUNCHER=sim tries the script without a card. CONCURRENCY,
# SCENARIOS, REQUESTS and OUTPUT_TOKENS are sweep's options of those names.
set -euo pipefail
usage='usage: quantised.sh BF16 NVFP4 OUT'
bf16=${1:?$usage} nvfp4=${2:?$usage} out=${3:?$usage}
qwenbench=${QWENBENCH:-python3 -m qwenbench}

options=()
for word in ${VLLM_ARGS:-}; do options+=("--vllm-arg=$word"); done
if [ -n "${TEXT:-}" ]; then options+=(--canary --natural-stop); else options+=(--no-natural-stop-check); fi
[ -n "${REQUESTS:-}" ] && options+=(--requests "$REQUESTS")
[ -n "${OUTPUT_TOKENS:-}" ] && options+=(--output-tokens "$OUTPUT_TOKENS")
[ "${LAUNCHER:-process}" = process ] && options+=(--vllm-command "${VLLM_COMMAND:-vllm serve}")

for name in bf16 nvfp4; do
  folder=(--out "$out" --run-id "$name")
  [ -e "$out/$name/run.json" ] && folder=(--resume "$out/$name")
  $qwenbench sweep --launcher "${LAUNCHER:-process}" --deployment generic --card "${CARD:-h100}" --model "${!name}" \
    --served-model-name model --capture 64 --max-num-seqs 64 --scenario "${SCENARIOS:-conversation,math}" \
    --concurrency "${CONCURRENCY:-1,16,64}" --relaunch-repeats "${LAUNCHES:-2}" --no-report "${options[@]}" "${folder[@]}" ||
    [ $? = 1 ] # some points failed: the other model is measured all the same
done
$qwenbench compare "$out/bf16" "$out/nvfp4" || [ $? = 1 ]
