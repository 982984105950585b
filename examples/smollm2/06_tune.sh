#!/usr/bin/env bash
# Step 6: the recipe's second stage, instruction tuning on short conversations out of a package (sources.py), in
# the model's own chat template. The rotary embedding stays that of the long rows.
#
# see: the validation loss on held-out conversations; in step 7, retrieval at the target's length as before it
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

kept "$WORK/conversations.jsonl" ||
    python "$here/conversations.py" "$WORK/conversations.jsonl" --packages "$CACHE/corpus"
kept "$WORK/chats" || ultralong prepare chat --source short="$WORK/conversations.jsonl" --tokenizer "$WORK/hf" \
    --chat-template chatml --seq-length "$CHAT_LENGTH" --valid-fraction 0.1 --output "$WORK/chats"
# shellcheck disable=SC2086 # several words
torchrun --standalone --nproc-per-node 1 -m megatron_ultralong sft --config "$here/tune.yaml" \
    --load "$WORK/run-$TARGET" --data-path "$WORK/chats" --save "$WORK/tuned-$TARGET" $SFT_FLAGS
