#!/usr/bin/env bash
# Step 7: the results, compared with the original model: loss by position on packages that nobody trained on,
# passkey and needle by length and depth. An evaluation that was interrupted continues where it was.
#
# see: loss that does not rise with the position; retrieval beyond 8,192 tokens
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

results=$WORK/results-$TARGET
models="before=$WORK/base after=$WORK/run-$TARGET tuned=$WORK/tuned-$TARGET"
evaluate() { # VERB FLAG...; of several models each has a folder in --output
    torchrun --standalone --nproc-per-node 1 -m megatron_ultralong evaluate "$1" --beyond-trained-positions \
        --output "$results/$1" "${@:2}"
}
# shellcheck disable=SC2086 # several words
{
    kept "$results/loss" || evaluate loss --load $models --data-path "$WORK/rows-held-out" --split train \
        --num-samples "$LOSS_ROWS" $EVALUATE_FLAGS
    for kind in passkey needle; do
        evaluate $kind --load $models --lengths $LENGTHS --depths $DEPTHS --num-samples "$PROMPTS" \
            $EVALUATE_FLAGS
    done
}
