#!/bin/bash
# One part of the campaign on a real card, within an RTX 5090's memory budget, as a run folder of its own.
#
#     tests/gpu/campaign.sh MODEL OUT RUN CAPTURES SEQS [OPTION...]
#
# MODEL: a model folder or name that vLLM can serve here; OUT: where the run folder goes; RUN: its name; CAPTURES:
# "16,32,64,128"; SEQS: "match", or values of --max-num-seqs; OPTION: further options of `qwenbench sweep`, which win over
# those below. A run folder of that name is continued: a machine that is lent for a short time does one part after the
# other. The parts of the campaign:
#
#     campaign.sh MODEL OUT match 16,32,64,128 match --devices 0,1                     # two servers side by side
#     campaign.sh MODEL OUT seqs256 64 256 --concurrency 64,128                        # more sequences than graphs
#     campaign.sh MODEL OUT tp2 64 match --devices 0,1 --vllm-arg=--tensor-parallel-size=2
#
# vLLM comes from the environment: set VLLM_COMMAND where `vllm serve` is not on the PATH; VLLM_ARGS: further arguments
# for it, separated by blanks (such as --load-format=dummy).
set -euo pipefail
usage='usage: campaign.sh MODEL OUT RUN CAPTURES SEQS [OPTION...]'
model=${1:?$usage} out=${2:?$usage} run=${3:?$usage} captures=${4:?$usage} seqs=${5:?$usage}
shift 5

options=()
for word in ${VLLM_ARGS:-}; do options+=("--vllm-arg=$word"); done
[ -e "$out/$run/run.json" ] && options+=(--resume "$out/$run") || options+=(--out "$out" --run-id "$run")

exec ${QWENBENCH:-python3 -m qwenbench} sweep --launcher process --vllm-command "${VLLM_COMMAND:-vllm serve}" \
  --card rtx-5090 --deployment rtx5090-headless --model "$model" --served-model-name Qwen3.5-9B \
  --capture "$captures" --max-num-seqs "$seqs" --scenario conversation,math,code,multilingual \
  --concurrency 1,16,64,128 --no-report "${options[@]}" "$@"
