#!/usr/bin/env bash
# Step 6: the recipe's second stage, instruction tuning on short conversations in the model's own chat template:
# those of a package (sources.py), and questions about a sentence in a text of the corpus (questions.py), of at most
# LONGEST_CHAT tokens. The rotary embedding stays that of the long rows.
#
# see: the validation loss on held-out conversations; in step 7, needles at the target's length as in a short text
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

kept "$WORK/questions.jsonl" ||
    python "$here/questions.py" "$WORK/corpus" "$WORK/questions.jsonl" --number "$QUESTIONS" \
        --longest "$LONGEST_PASSAGE"
kept "$WORK/chats-questions" || ultralong prepare chat --source short="$WORK/conversations.jsonl" \
    --source questions="$WORK/questions.jsonl" --tokenizer "$WORK/hf" --chat-template chatml \
    --seq-length "$CHAT_LENGTH" --max-length "$LONGEST_CHAT" --valid-fraction 0.05 --output "$WORK/chats-questions"
# shellcheck disable=SC2086 # several words
torchrun --standalone --nproc-per-node 1 -m megatron_ultralong sft --config "$here/tune.yaml" \
    --load "$WORK/run-$TARGET" --data-path "$WORK/chats-questions" --save "$WORK/tuned-$TARGET" $SFT_FLAGS
