#!/usr/bin/env bash
# Step 7: the results, compared with the original model: loss by position on packages that nobody trained on,
# passkey and needle by length and depth. An evaluation that was interrupted continues where it was;
# a finished one is kept, or refused if its settings or weights have changed since.
#
# see: loss that does not rise with the position; retrieval beyond 8,192 tokens
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

results=$WORK/results-$TARGET
before="before=$WORK/base"
trained=("after=$WORK/run-$TARGET" "tuned=$WORK/tuned-$TARGET")
evaluate() { # VERB OUTPUT FLAG...; of several models each has a folder in OUTPUT
    torchrun --standalone --nproc-per-node "$GPUS" -m megatron_ultralong evaluate "$1" --beyond-trained-positions \
        --context-parallel-size "$GPUS" --output "$results/$2" "${@:3}"
}
# shellcheck disable=SC2086 # several words
{
    evaluate loss loss --load "$before" "${trained[@]}" --data-path "$WORK/rows-held-out-$TARGET" \
        --split train --num-samples "$LOSS_ROWS" $EVALUATE_FLAGS
    grid="--lengths $LENGTHS --depths $DEPTHS --seed $PROMPT_SEED $EVALUATE_FLAGS"
    for kind in passkey needle; do
        evaluate $kind $kind/before --load "$before" --num-samples "$BEFORE_PROMPTS" $grid
        evaluate $kind $kind --load "${trained[@]}" --num-samples "$PROMPTS" $grid
    done
}
