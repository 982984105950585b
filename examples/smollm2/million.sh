#!/usr/bin/env bash
# Rows of 1,048,576 tokens, after steps 1, 2 and 4: GPUS=4 bash examples/smollm2/million.sh [--cpu]. Six iterations
# of one step of YaRN by 128, each row over all GPUs; then needles and passkeys at three depths, and the loss by
# position on a held-out row, before and after. FROM=run-128k starts from step 5's run, FROM=tuned-256k from step
# 6's. Again after an interruption: it continues; other settings are refused.
#
# see: the plan first, then its step and memory beside those of the run; docs/results.md has three runs
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

layout="--ranks $GPUS --context-parallel-size $GPUS"
yarn="--rope-scaling yarn --rope-scaling-factor $MILLION_FACTOR --original-max-position-embeddings $POSITIONS"
rows "$WORK/rows-1m" train "$MILLION_LENGTH" --valid-fraction 0 --seed 1
rows "$WORK/rows-1m-held-out" held_out "$MILLION_LENGTH" --valid-fraction 0 --seed 1
results=$WORK/results-1m
# shellcheck disable=SC2206 # several words
run=(
    pretrain --config "$here/target.yaml" $layout --load "$WORK/$FROM" --data-path "$WORK/rows-1m"
    --save "$WORK/run-1m" --seq-length "$MILLION_LENGTH" $yarn --ramp dimensions --attention-factor yarn
    --train-iters "$MILLION_ITERS" --lr "$MILLION_LR" --lr-warmup-iters 0 --lr-decay-style constant
    --log-interval 1 --save-interval 1 --save-retain-last 1 $MILLION_FLAGS
)
# shellcheck disable=SC2086 # several words
{
    ultralong "${run[@]}" --dry-run # the plan for this machine
    continued "$WORK/run-1m" ultralong "${run[@]}"
    for kind in needle passkey; do
        ultralong evaluate $kind $layout --load "after=$WORK/run-1m" --lengths "$MILLION_LENGTH" \
            --depths $MILLION_DEPTHS --num-samples 1 --seed "$PROMPT_SEED" --output "$results/$kind" $EVALUATE_FLAGS
    done
    ultralong evaluate loss $layout --load "before=$WORK/$FROM" "after=$WORK/run-1m" \
        --data-path "$WORK/rows-1m-held-out" --split train --num-samples 1 --beyond-trained-positions \
        --output "$results/loss" $EVALUATE_FLAGS
}
