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

if [ ! -e "$WORK/hf" ] || ! ultralong convert inspect "$WORK/hf"; then # a whole model is taken as it is
    hf download "$MODEL_ID" --local-dir "$WORK/hf" --exclude "original/*"
    ultralong convert inspect "$WORK/hf"
fi
