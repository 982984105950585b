#!/usr/bin/env bash
# Step 2: rows of exactly the target's length out of documents (SOURCES in settings.sh). The paper: those
# under 4K tokens seldom, those over 8K often, 1B tokens in all, joined by <s>.
#
# time:   computed: 100 s a core for every 1.3B tokens of the documents (measured: 13 Mtokens/s a core)
# memory: measured: 0.6 GiB a worker
# disk:   5.2 GB of rows (4 bytes a token); as much again meanwhile for what is tokenized
# see:    shares of the sources as found; at least 1.26B tokens in "train"
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
needs 2

from=()
for source in "${sources[@]}"; do from+=(--source "$source"); done
once "$WORK/rows-$TARGET" ultralong prepare "${from[@]}" --tokenizer "$WORK/hf" \
    --output "$WORK/rows-$TARGET" --seq-length "$SEQ_LENGTH" --length-sampling ultralong \
    --short-length "$SHORT_LENGTH" --long-length "$LONG_LENGTH" --max-tokens "$MAX_TOKENS" \
    --workers "$WORKERS" --skip-bad
