#!/bin/bash
# One part of the campaign on a real card, within an RTX 5090's memory budget, as a run folder of its own.
#
#     tests/gpu/campaign.sh MODEL OUT RUN CAPTURES SEQS
#
# MODEL: a model folder or name that vLLM can serve here; OUT: where the run folder goes; RUN: its name; CAPTURES:
# "16,32,64,128"; SEQS: "match", or values of --max-num-seqs. A run folder of that name is continued: a machine that is
# lent for a short time does one part after the other. The parts of the campaign:
#
#     DEVICES=0,1 campaign.sh MODEL OUT match 16,32,64,128 match                      # two servers side by side
#     CONCURRENCY=64,128 campaign.sh MODEL OUT seqs256 64 256                          # more sequences than graphs
#     DEVICES=0,1 VLLM_ARGS="... --tensor-parallel-size=2" campaign.sh MODEL OUT tp2 64 match
#
# vLLM comes from the environment: set VLLM_COMMAND where `vllm serve` is not on the PATH; VLLM_ARGS: further arguments
# for it, separated by blanks (such as --load-format=dummy). DEVICES, CONCURRENCY, SCENARIOS, REQUESTS and OUTPUT_TOKENS
# are sweep's options of those names.
set -euo pipefail
usage='usage: campaign.sh MODEL OUT RUN CAPTURES SEQS'
model=${1:?$usage} out=${2:?$usage} run=${3:?$usage} captures=${4:?$usage} seqs=${5:?$usage}

options=()
for word in ${VLLM_ARGS:-}; do options+=("--vllm-arg=$word"); done
[ -n "${DEVICES:-}" ] && options+=(--devices "$DEVICES")
[ -n "${REQUESTS:-}" ] && options+=(--requests "$REQUESTS")
[ -n "${OUTPUT_TOKENS:-}" ] && options+=(--output-tokens "$OUTPUT_TOKENS")
[ -e "$out/$run/run.json" ] && options+=(--resume "$out/$run") || options+=(--out "$out" --run-id "$run")

exec ${QWENBENCH:-python3 -m qwenbench} sweep --launcher process --vllm-command "${VLLM_COMMAND:-vllm serve}" \
  --card rtx-5090 --deployment rtx5090-headless --model "$model" --served-model-name Qwen3.5-9B \
  --capture "$captures" --max-num-seqs "$seqs" --scenario "${SCENARIOS:-conversation,math,code,multilingual}" \
  --concurrency "${CONCURRENCY:-1,16,64,128}" --no-report "${options[@]}"
