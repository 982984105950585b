#!/usr/bin/env bash
# Step 6: the result: loss by position on held-out documents, maps of retrieval, RULER, an answer, and
# all of it on one page. An evaluation that was interrupted continues where it was.
#
# time:   computed, 8 GPUs at 40 % of their peak: loss 0.4 hours (1m), 0.8 (2m), 1.6 (4m); passkey and needle
#         1.8 hours each (1m), 2.8 (2m), 5.4 (4m); RULER 5 minutes and its decoding
# memory: less than in training with the same tokens a GPU; keys and values of decoding: 16 KiB a token and GPU
# disk:   little
# see:    loss beyond 131,072 tokens not above that inside; passkey 100 %; report-TARGET/index.html
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
needs 6

results=$WORK/results-$TARGET
# shellcheck disable=SC2086 # several words
{
    torchrun --nproc-per-node "$RANKS" -m megatron_ultralong evaluate loss \
        --load "base=$WORK/base" "extended=$WORK/run-$TARGET" --beyond-trained-positions \
        --data-path "$WORK/rows-$TARGET" --num-samples "$LOSS_ROWS" $LAYOUT_FLAGS \
        --output "$results/loss"
    torchrun --nproc-per-node "$RANKS" -m megatron_ultralong evaluate passkey \
        --load "tuned=$WORK/tuned-$TARGET" --lengths $LENGTHS --depths $DEPTHS \
        --num-samples "$PROMPTS" $LAYOUT_FLAGS --output "$results/passkey"
    torchrun --nproc-per-node "$RANKS" -m megatron_ultralong evaluate needle \
        --load "tuned=$WORK/tuned-$TARGET" --lengths $LENGTHS --depths $DEPTHS \
        --num-samples "$PROMPTS" $LAYOUT_FLAGS --output "$results/needle"
    torchrun --nproc-per-node "$RANKS" -m megatron_ultralong evaluate ruler \
        --load "tuned=$WORK/tuned-$TARGET" --lengths $RULER_LENGTHS --num-samples "$RULER_SAMPLES" \
        $RULER_FLAGS $LAYOUT_FLAGS --output "$results/ruler"
    torchrun --nproc-per-node "$RANKS" -m megatron_ultralong generate --load "$WORK/tuned-$TARGET" \
        --chat --prompt "$QUESTION" --max-new-tokens "$ANSWER_TOKENS" $LAYOUT_FLAGS
}
report_on "$results" "$WORK/report-$TARGET"
