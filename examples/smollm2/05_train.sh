#!/usr/bin/env bash
# Step 5: extend the context: one step of YaRN to the target's factor. The first iterations take shorter rows,
# four times as many in the same time; the rotary embedding is the target's from the first of them on. Again
# after an interruption: it continues from the last checkpoint; other settings are refused.
#
# see: the loss falls from 4.9 to 1.5 or so; after the first iterations most gradient norms are below 1
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

# shellcheck disable=SC2086 # several words
{
    continued "$WORK/first-$TARGET" \
        torchrun --standalone --nproc-per-node "$GPUS" -m megatron_ultralong pretrain --config "$here/first.yaml" \
        --load "$WORK/base" --data-path "$WORK/rows-first" --save "$WORK/first-$TARGET" \
        --seq-length "$FIRST_LENGTH" --rope-scaling-factor "$FACTOR" --train-iters "$FIRST_ITERS" \
        --lr "$LR" $PRETRAIN_FLAGS
    continued "$WORK/run-$TARGET" \
        torchrun --standalone --nproc-per-node "$GPUS" -m megatron_ultralong pretrain --config "$here/target.yaml" \
        --load "$WORK/first-$TARGET" --data-path "$WORK/rows-$TARGET" --save "$WORK/run-$TARGET" \
        --seq-length "$SEQ_LENGTH" --train-iters "$TRAIN_ITERS" --lr "$LR" --context-parallel-size "$GPUS" \
        $PRETRAIN_FLAGS
}
