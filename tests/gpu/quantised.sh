#!/bin/bash
# The same model in bfloat16 and in NVFP4 on a real card: weights, cache and tokens/s side by side.
#
#     tests/gpu/quantised.sh BF16 NVFP4 OUT [OPTION...]
#
# BF16, NVFP4: model folders; OUT: where the run folders bf16 and nvfp4 go (one that is there is continued); OPTION:
# further options of `qwenbench sweep`, which win over those below. A hybrid of Qwen3.5's shape with random weights, and
# its NVFP4 checkpoint (by the recipe's packages; a card makes it in seconds, a CPU in minutes):
#
#     python tests/recipe/build_hybrid.py hybrid 24 1024
#     python recipes/nvfp4/quantize.py --model hybrid --calibration seed.jsonl --samples-per-set 8 --out hybrid-nvfp4
#     tests/gpu/quantised.sh hybrid hybrid-nvfp4 out --no-natural-stop-check
#
# Random weights in files are not seen to be random: without that option their answers would be called broken. For a
# model whose answers mean something give `--canary --natural-stop`; `--launcher sim` tries the script without a card.
# vLLM comes from the environment, as in campaign.sh: VLLM_COMMAND, VLLM_ARGS.
set -euo pipefail
usage='usage: quantised.sh BF16 NVFP4 OUT [OPTION...]'
bf16=${1:?$usage} nvfp4=${2:?$usage} out=${3:?$usage}
shift 3

options=()
for word in ${VLLM_ARGS:-}; do options+=("--vllm-arg=$word"); done
[[ " $* " == *" sim "* ]] || options+=(--vllm-command "${VLLM_COMMAND:-vllm serve}")

for name in bf16 nvfp4; do
  folder=(--out "$out" --run-id "$name")
  [ -e "$out/$name/run.json" ] && folder=(--resume "$out/$name")
  ${QWENBENCH:-python3 -m qwenbench} sweep --launcher process --deployment generic --card h100 --model "${!name}" \
    --served-model-name model --capture 64 --max-num-seqs 64 --scenario conversation,math \
    --concurrency 1,16,64 --relaunch-repeats 2 --no-report "${options[@]}" "${folder[@]}" "$@" ||
    [ $? = 1 ] # some points failed: the other model is measured all the same
done
${QWENBENCH:-python3 -m qwenbench} compare "$out/bf16" "$out/nvfp4" || [ $? = 1 ]
