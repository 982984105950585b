#!/usr/bin/env bash
# Small values for the numbered scripts, for a CPU: the same model and the same commands. Some minutes, most of
# them for the model's 135M parameters; the result is no better than the original model.
# shellcheck disable=SC2034 # settings.sh sources it, and the scripts use what it sets
WORK=${WORK:-$PWD/smollm2-cpu}
FACTOR=2 SEQ_LENGTH=256 FIRST_LENGTH=128 FIRST_ITERS=2 TRAIN_ITERS=2
CORPUS_FLAGS="--indexes pypi --only nltk networkx sphinx --most-bytes 400000 --largest-document 20000"
VALID_FRACTION=0.2 VERIFY_LENGTH=64
PRETRAIN_FLAGS="--precision fp32 --global-batch-size ${GPUS:-1} --lr-warmup-iters 1"
MILLION_LENGTH=512 MILLION_ITERS=2 MILLION_FLAGS="--precision fp32"
CHAT_LENGTH=512 QUESTIONS=60 FAR_QUESTIONS=10 SHORTEST_FAR=800 LONGEST_FAR=1200 SFT_FLAGS="--precision fp32 --train-iters 2 --lr-warmup-iters 1 --eval-interval 0"
LENGTHS="$SEQ_LENGTH" DEPTHS="50" PROMPTS=1 BEFORE_PROMPTS=1 LOSS_ROWS=1
RULER_SHORT=1024 RULER_LONG=1280 RULER_PROMPTS=1 RULER_TASKS="niah_single_2 vt"
EVALUATE_FLAGS="--precision fp32"
ANSWER_TOKENS=8 WORKERS=1
