#!/usr/bin/env bash
# RULER, after step 5: eleven of its thirteen tasks, of the original model within its own positions, of the
# extended one from 4,096 to 65,536 tokens. The texts of the needles are a held-out book. Again after an
# interruption: it continues.
#
# see: the mean of each length, with its error, in results-TARGET/ruler; a report of step 8 has them, too, if it is
# made after this
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

once "$WORK/essays.txt" python "$here/essays.py" "$WORK/corpus" "$WORK/essays.txt"
ruler() { # MODEL LENGTHS PROMPTS OUTPUT
    # shellcheck disable=SC2086 # several words
    torchrun --standalone --nproc-per-node 1 -m megatron_ultralong \
        evaluate ruler --load "$1" --lengths $2 --tasks $RULER_TASKS --essays "$WORK/essays.txt" --num-samples "$3" --micro-batch-size "$3" \
        --beyond-trained-positions --output "$WORK/results-$TARGET/ruler/$4" $EVALUATE_FLAGS
}
ruler "before=$WORK/base" "$RULER_SHORT" "$RULER_PROMPTS" before
ruler "after=$WORK/run-$TARGET" "$RULER_SHORT" "$RULER_PROMPTS" after
ruler "after=$WORK/run-$TARGET" "$RULER_LONG" $(((RULER_PROMPTS + 1) / 2)) after-long
