#!/usr/bin/env bash
# Step 4: extend the context, in one step to the target. The recipes take 32 GPUs (1m) or 128 (2m, 4m);
# on SLURM use examples/slurm. Again after an interruption: it goes on from the last checkpoint.
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

# shellcheck disable=SC2086 # several words
torchrun --nproc-per-node "$RANKS" -m megatron_ultralong pretrain "$RECIPE" \
    --load "$WORK/base" --data-path "$WORK/rows-$TARGET" --save "$WORK/run-$TARGET" $PRETRAIN_FLAGS
