#!/usr/bin/env bash
# Small values for the numbered scripts, for a CPU: the same model and the same commands. Some minutes, most of
# them for the model's 135M parameters; the result is no better than the original model. What is set in the
# environment stays.
# shellcheck disable=SC2034 # settings.sh sources it, and the scripts use what it sets
WORK=${WORK:-$PWD/smollm2-cpu}
FACTOR=${FACTOR:-2} SEQ_LENGTH=${SEQ_LENGTH:-256} FIRST_LENGTH=${FIRST_LENGTH:-128}
FIRST_ITERS=${FIRST_ITERS:-2} TRAIN_ITERS=${TRAIN_ITERS:-2}
CORPUS_FLAGS="${CORPUS_FLAGS:---indexes pypi --only nltk networkx sphinx --most-bytes 400000 --largest-document 20000}"
VALID_FRACTION=${VALID_FRACTION:-0.2} VERIFY_LENGTH=${VERIFY_LENGTH:-64}
PRETRAIN_FLAGS="${PRETRAIN_FLAGS:---precision fp32 --global-batch-size ${GPUS:-1} --lr-warmup-iters 1}"
MILLION_LENGTH=${MILLION_LENGTH:-512} MILLION_ITERS=${MILLION_ITERS:-2} MILLION_FLAGS="${MILLION_FLAGS:---precision fp32}"
CHAT_LENGTH=${CHAT_LENGTH:-512} QUESTIONS=${QUESTIONS:-60} FAR_QUESTIONS=${FAR_QUESTIONS:-10}
SHORTEST_FAR=${SHORTEST_FAR:-800} LONGEST_FAR=${LONGEST_FAR:-1200}
SFT_FLAGS="${SFT_FLAGS:---precision fp32 --train-iters 2 --lr-warmup-iters 1 --eval-interval 0}"
LENGTHS="${LENGTHS:-$SEQ_LENGTH}" DEPTHS="${DEPTHS:-50}" PROMPTS=${PROMPTS:-1} BEFORE_PROMPTS=${BEFORE_PROMPTS:-1} LOSS_ROWS=${LOSS_ROWS:-1}
RULER_SHORT=${RULER_SHORT:-1024} RULER_LONG=${RULER_LONG:-1280} RULER_PROMPTS=${RULER_PROMPTS:-1} RULER_TASKS="${RULER_TASKS:-niah_single_2 vt}"
CHOICES=${CHOICES:-4}
EVALUATE_FLAGS="${EVALUATE_FLAGS:---precision fp32}"
ANSWER_TOKENS=${ANSWER_TOKENS:-8} WORKERS=${WORKERS:-1}
