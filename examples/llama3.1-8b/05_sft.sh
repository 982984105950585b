#!/usr/bin/env bash
# Step 5: instruction tuning on conversations (CHATS in settings.sh), from the extended checkpoint.
#
# time:   computed: 0.7 hours on 8 GPUs for 100,000 conversations of 1,000 tokens: 96 steps of 24 s
# memory: computed: 26 GiB a GPU
# disk:   computed: 112 GB a checkpoint, 2 kept
# see:    the tables of what `prepare chat` dropped; loss of the assistant's tokens falls
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
needs 5

# prepare expands the pattern itself
once "$WORK/chats-$TARGET" ultralong prepare chat --source "$CHATS" --tokenizer "$WORK/hf" \
    --chat-template "$CHAT_TEMPLATE" --seq-length "$CHAT_LENGTH" --output "$WORK/chats-$TARGET"
# shellcheck disable=SC2086 # several words
torchrun --nproc-per-node "$RANKS" -m megatron_ultralong sft "$SFT_RECIPE" --load "$WORK/run-$TARGET" \
    --data-path "$WORK/chats-$TARGET" --save "$WORK/tuned-$TARGET" $SFT_FLAGS
