#!/usr/bin/env bash
# Step 6: loss by position on held-out documents, and retrieval by length and depth.
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

# shellcheck disable=SC2086 # several words
torchrun --nproc-per-node "$RANKS" -m megatron_ultralong evaluate loss \
    --load "base=$WORK/base" "extended=$WORK/run-$TARGET" --beyond-trained-positions \
    --data-path "$WORK/rows-$TARGET" --num-samples "$LOSS_ROWS" $LAYOUT_FLAGS \
    --output "$WORK/loss-$TARGET"
# shellcheck disable=SC2086
torchrun --nproc-per-node "$RANKS" -m megatron_ultralong evaluate passkey \
    --load "tuned=$WORK/tuned-$TARGET" --lengths $LENGTHS --depths $DEPTHS --num-samples "$PROMPTS" \
    $LAYOUT_FLAGS --output "$WORK/passkey-$TARGET"
