#!/bin/bash
# The campaign on a real card: captures 16, 32, 64, 128 (max-num-seqs match, and 256 for capture 64) with the four
# scenarios at 1, 16, 64 and 128 streams, within an RTX 5090's memory budget.
#
#     tests/gpu/campaign.sh MODEL OUT RUN [CAPTURES]
#
# MODEL: a model folder or name that vLLM can serve here; OUT: where the run folder goes; RUN: its name. CAPTURES: the
# sizes to do now ("16,32"): a machine that is lent for a short time does a few, and every part is a run of its own, so
# that --resume only ever continues the same plan. Each new capture size costs minutes of start-up.
#
# vLLM comes from the environment: set VLLM_COMMAND where `vllm serve` is not on the PATH. Extra arguments for vLLM
# (such as --load-format dummy) go into VLLM_ARGS, separated by blanks.
set -euo pipefail
model=${1:?usage: campaign.sh MODEL OUT RUN [CAPTURES]} out=${2:?} run=${3:?} captures=${4:-16,32,64,128}
qwenbench=${QWENBENCH:-python3 -m qwenbench}

arguments=()
for word in ${VLLM_ARGS:-}; do arguments+=("--vllm-arg=$word"); done

part() { # NAME CAPTURES SEQS
  local resume=()
  [ -e "$out/$run-$1/run.json" ] && resume=(--resume "$out/$run-$1") || resume=(--out "$out" --run-id "$run-$1")
  $qwenbench sweep "${resume[@]}" --launcher process --vllm-command "${VLLM_COMMAND:-vllm serve}" --card rtx-5090 \
    --deployment rtx5090-headless --model "$model" --served-model-name Qwen3.5-9B --capture "$2" --max-num-seqs "$3" \
    --concurrency 1,16,64,128 --no-report "${arguments[@]}"
}

status=0
IFS=, read -ra sizes <<<"$captures"
for size in "${sizes[@]}"; do
  part "capture-$size" "$size" match || status=$?
  [ "$status" = 130 ] && exit 130
  if [ "$size" = 64 ]; then part capture-64-seqs-256 64 256 || status=$?; fi
done
exit "$status"
