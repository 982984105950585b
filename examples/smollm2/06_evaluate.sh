#!/usr/bin/env bash
# Step 6: the result, compared with the original model: loss by position on packages that nobody trained on,
# passkey and needle by length and depth. An evaluation that was interrupted continues where it was.
#
# see: loss that does not rise with the position; retrieval beyond 8,192 tokens
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

results=$WORK/results-$TARGET
evaluate() { # FOLDER KIND FLAG...
    kept "$results/$1" || torchrun --standalone --nproc-per-node 1 -m megatron_ultralong evaluate "${@:2}" \
        --beyond-trained-positions --output "$results/$1"
}
# shellcheck disable=SC2086 # several words
{
    evaluate loss loss --load "before=$WORK/base" "after=$WORK/run-$TARGET" \
        --data-path "$WORK/rows-held-out" --split train --num-samples "$LOSS_ROWS" $EVALUATE_FLAGS
    for name in before after; do
        if [ $name = before ]; then checkpoint=$WORK/base; else checkpoint=$WORK/run-$TARGET; fi
        for kind in passkey needle; do
            evaluate "$kind-$name" "$kind" --load "$name=$checkpoint" --lengths $LENGTHS \
                --depths $DEPTHS --num-samples "$PROMPTS" $EVALUATE_FLAGS
        done
    done
}
