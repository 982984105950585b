#!/usr/bin/env bash
# Step 6: the recipe's second stage, instruction tuning on conversations in the model's own chat template: short ones
# of a package (sources.py), and questions about sentences in texts of the corpus (questions.py), near in short texts
# and far back in long ones. The rotary embedding stays that of the long rows.
#
# see: the validation loss on held-out conversations; in step 7, needles at the target's length as in a short text
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

sources=(--source short="$WORK/conversations.jsonl")
ask() { # NAME FILE NUMBER FLAG...: a source of so many, made unless it is there
    [ "$3" != 0 ] || return 0
    once "$2" python "$here/questions.py" "$WORK/corpus" "$2" --number "${@:3}"
    sources+=(--source "$1=$2")
}
ask near "$WORK/near-questions.jsonl" "$QUESTIONS"
ask far "$WORK/far-questions-$TARGET.jsonl" "$FAR_QUESTIONS" --shortest "$SHORTEST_FAR" --longest "$LONGEST_FAR"
once "$WORK/chats-$TARGET" ultralong prepare chat "${sources[@]}" \
    --tokenizer "$WORK/hf" --chat-template chatml --seq-length "$CHAT_LENGTH" --max-length "$CHAT_LENGTH" \
    --valid-fraction 0.02 --output "$WORK/chats-$TARGET"
# shellcheck disable=SC2086 # several words
continued "$WORK/tuned-$TARGET" \
    torchrun --standalone --nproc-per-node "$GPUS" -m megatron_ultralong sft --config "$here/tune.yaml" \
    --load "$WORK/run-$TARGET" --data-path "$WORK/chats-$TARGET" --save "$WORK/tuned-$TARGET" \
    --context-parallel-size "$GPUS" $SFT_FLAGS
