#!/usr/bin/env bash
# Step 3: rows of exactly the target's length, shorter ones for the first part of the training, and rows of the
# held-out packages. Every document is long, so none is sampled by its length.
#
# see: shares of the sources; "valid": documents that the settings may be chosen on, unlike the held-out rows
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

rows "$WORK/rows-$TARGET" "train target" "$SEQ_LENGTH" --packing row-start --valid-fraction "$VALID_FRACTION" \
    --seed 1
rows "$WORK/rows-first" train "$FIRST_LENGTH" --valid-fraction "$VALID_FRACTION" --seed 1
rows "$WORK/rows-held-out-$TARGET" held_out "$SEQ_LENGTH" --valid-fraction 0
