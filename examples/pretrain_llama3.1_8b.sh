#!/usr/bin/env bash
# Extend Llama-3.1-8B-Instruct to 1M, 2M or 4M tokens; start it once on every node of 8 GPUs.
#
#   NNODES=4 NODE_RANK=0 MASTER_ADDR=node0 TARGET=1m CORPUS=/data/corpus HF=/models/Llama-3.1-8B-Instruct \
#       WORK=/shared/ultralong bash examples/pretrain_llama3.1_8b.sh
#
# The recipes take TP 8 x CP 4 = 32 GPUs (4 nodes) for 1M and TP 8 x CP 16 = 128 GPUs (16 nodes) for 2M
# and 4M; more nodes are more replicas, fewer are refused. What is there already is not made again, and
# a run that was stopped goes on from its last checkpoint.
# Not yet run at this size: try it with --train-iters 2 --lr-warmup-iters 1 first.
set -euo pipefail

: "${NNODES:?number of nodes}" "${NODE_RANK:?number of this node, from 0}"
: "${MASTER_ADDR:?host name of node 0}" "${HF:?Hugging Face folder of Llama-3.1-8B-Instruct}"
: "${CORPUS:?JSONL or parquet files, or a folder of them}" "${WORK:?folder that all nodes share}"
TARGET=${TARGET:-1m}
case "$TARGET" in
    1m) seq_length=1048576 ;;
    2m) seq_length=2097152 ;;
    4m) seq_length=4194304 ;;
    *) echo "TARGET ($TARGET) must be 1m, 2m or 4m" >&2; exit 2 ;;
esac
rows=$WORK/rows-$TARGET base=$WORK/base run=$WORK/run-$TARGET

if [ "$NODE_RANK" = 0 ]; then
    [ -d "$base" ] || ultralong convert import "$HF" "$base"
    # The paper: documents under 4K tokens down, over 8K up, 1B tokens, joined by <s>.
    [ -d "$rows" ] || ultralong prepare --source "corpus=$CORPUS" --tokenizer "$HF" --output "$rows" \
        --seq-length "$seq_length" --length-sampling ultralong --max-tokens 1300000000
fi
until [ -f "$rows/manifest.json" ] && [ -f "$base/ultralong.json" ]; do sleep 10; done

export CUDA_DEVICE_MAX_CONNECTIONS=1  # Megatron's overlap of tensor-parallel communication
torchrun --nnodes "$NNODES" --node-rank "$NODE_RANK" --nproc-per-node 8 \
    --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:29500" --rdzv-id "ultralong-$TARGET" \
    -m megatron_ultralong pretrain "llama3.1-8b-$TARGET" \
    --load "$base" --data-path "$rows" --save "$run" "$@"

if [ "$NODE_RANK" = 0 ]; then
    ultralong convert export "$run" "$WORK/Llama-3.1-8B-UltraLong-$TARGET"
fi
