#!/usr/bin/env bash
# Step 3: rows of exactly the target's length, shorter ones for the first part of the training, and rows of the
# held-out packages. Every document is long, so none is sampled by its length.
#
# see: shares of the sources; "valid": documents that the settings may be chosen on, unlike the held-out rows
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

rows() { # FOLDER PARTS_OF_THE_CORPUS SEQ_LENGTH [FLAG...]
    kept "$1" && return
    local sources=() part file
    for part in $2; do
        for file in "$WORK/corpus/$part"/*.jsonl; do
            [ ! -e "$file" ] || sources+=(--source "$(basename "$file" .jsonl)=$file")
        done
    done
    ultralong prepare "${sources[@]}" --tokenizer "$WORK/hf" --output "$1" --seq-length "$3" \
        --length-sampling none --workers "$WORKERS" "${@:4}"
}
rows "$WORK/rows-$TARGET" "train target" "$SEQ_LENGTH" --packing row-start --valid-fraction "$VALID_FRACTION" \
    --seed 1
rows "$WORK/rows-first" train "$FIRST_LENGTH" --valid-fraction "$VALID_FRACTION" --seed 1
rows "$WORK/rows-held-out" held_out "$SEQ_LENGTH" --valid-fraction 0
