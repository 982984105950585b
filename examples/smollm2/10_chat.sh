#!/usr/bin/env bash
# Step 10: ask it something (QUESTION), in its own chat template.
#
# see: an answer
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

# shellcheck disable=SC2086 # several words
torchrun --standalone --nproc-per-node 1 -m megatron_ultralong generate --load "$WORK/tuned-$TARGET" --chat \
    --prompt "$QUESTION" --max-new-tokens "$ANSWER_TOKENS" $EVALUATE_FLAGS
