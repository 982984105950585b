#!/usr/bin/env bash
# Step 1: the weights and the tokenizer. Meta's licence has to be accepted at huggingface.co first, and
# `hf auth login` called once.
#
# time:   download of 16.1 GB
# memory: little
# disk:   16.1 GB
# see:    8,030,261,248 parameters in the table of `convert inspect`
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
needs 1

asked=(hf download "$MODEL_ID")
[ ! -e "$WORK/hf/config.json" ] || made_by "$WORK/hf" "${asked[@]}"
if [ ! -e "$WORK/hf" ] || ! ultralong convert inspect "$WORK/hf"; then # a whole model is taken as it is
    mkdir -p "$WORK"
    words_of "$WORK/hf" "${asked[@]}" > "$WORK/hf.made" # a download that was interrupted continues by the same words
    "${asked[@]}" --local-dir "$WORK/hf" --exclude "original/*"
    ultralong convert inspect "$WORK/hf"
fi
