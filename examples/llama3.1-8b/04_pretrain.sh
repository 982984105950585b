#!/usr/bin/env bash
# Step 4: extend the context, in one step to the target. The recipes take 32 GPUs (1m) or 128 (2m, 4m);
# on SLURM use slurm/04_pretrain.sbatch. Again after an interruption: it continues from the last checkpoint.
#
# time:   computed: 1m on 32 GPUs 21 hours, 505 s a step; 2m on 128 GPUs 10 hours, 239 s a step; 4m on 128
#         GPUs 19 hours, 465 s a step
# memory: computed: 1m 31 GiB a GPU, 2m 19 GiB, 4m 29 GiB; measured, one rank of 256: 26 GiB
# disk:   computed: 112 GB a checkpoint, 2 kept
# see:    loss falls in the first 10 iterations; gradient norm below 1; no "skipped"
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
needs 4

# shellcheck disable=SC2086 # several words
torchrun --nproc-per-node "$RANKS" -m megatron_ultralong pretrain "$RECIPE" \
    --load "$WORK/base" --data-path "$WORK/rows-$TARGET" --save "$WORK/run-$TARGET" $PRETRAIN_FLAGS
