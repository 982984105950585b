#!/usr/bin/env bash
# Small values for the numbered scripts: the demo's model instead of Llama 3.1 8B, Python's own library
# instead of a corpus, two ranks over gloo instead of GPUs, stand-ins for the Hub and for vLLM. Days
# become two minutes; nothing in the scripts themselves is left out.
# shellcheck disable=SC2034,SC2154 # settings.sh sources it, and the scripts use what it sets
mock=$here/mock
WORK=${WORK:-$PWD/mock-llama3.1-8b}
mkdir -p "$WORK"
case "$TARGET" in
    1m) SEQ_LENGTH=${SEQ_LENGTH:-1024} ;;
    2m) SEQ_LENGTH=${SEQ_LENGTH:-2048} ;;
    4m) SEQ_LENGTH=${SEQ_LENGTH:-4096} ;;
esac
whole_number SEQ_LENGTH 1024
factor=$(((SEQ_LENGTH + 511) / 512)) # the model was trained for 512 positions
RECIPE=${RECIPE:-demo-cpu} RANKS=${RANKS:-2} WORKERS=${WORKERS:-1}
MAX_TOKENS=${MAX_TOKENS:-2000000} SHORT_LENGTH=${SHORT_LENGTH:-256} LONG_LENGTH=${LONG_LENGTH:-512}
SOURCES=${SOURCES:-"library=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')/*.py"}
PRETRAIN_FLAGS=${PRETRAIN_FLAGS:-"--seq-length $SEQ_LENGTH --rope-scaling-factor $((factor > 2 ? factor : 2))
    --train-iters 2 --lr-warmup-iters 1"}
CHATS=${CHATS:-"chats=$mock/chats.jsonl"} CHAT_TEMPLATE=${CHAT_TEMPLATE:-plain} CHAT_LENGTH=${CHAT_LENGTH:-1024}
SFT_RECIPE=${SFT_RECIPE:-demo-sft-cpu}
SFT_FLAGS=${SFT_FLAGS:-"--context-parallel-size $RANKS --train-iters 2 --lr-warmup-iters 1 --global-batch-size 1"}
LAYOUT_FLAGS=${LAYOUT_FLAGS:-"--context-parallel-size $RANKS --precision fp32"}
LENGTHS=${LENGTHS:-"256 $SEQ_LENGTH"} DEPTHS=${DEPTHS:-"0 50 100"} PROMPTS=${PROMPTS:-1} LOSS_ROWS=${LOSS_ROWS:-2}
RULER_LENGTHS=${RULER_LENGTHS:-$SEQ_LENGTH} RULER_SAMPLES=${RULER_SAMPLES:-1}
RULER_FLAGS=${RULER_FLAGS:-"--tasks niah_single_1 vt"} ANSWER_TOKENS=${ANSWER_TOKENS:-8}
PORT=${PORT:-$((20000 + $$ % 10000))} SERVE_SECONDS=${SERVE_SECONDS:-0.1}
SERVE_RANKS=${SERVE_RANKS:-1} SERVE_DTYPE=${SERVE_DTYPE:-float32}
CHECK_TOKENS=${CHECK_TOKENS:-640} CHECK_TOLERANCE=${CHECK_TOLERANCE:-1e-3}
export PET_STANDALONE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PATH=$mock/bin:$PATH

# The Hub: `hf download` asks the address in HF_ENDPOINT.
if [ "$(basename "$0")" = 01_get_weights.sh ]; then
    python3 "$mock/hub.py" "$here/../demo/base" "$WORK/hub-port" &
    hub=$!
    trap 'kill "$hub" 2>/dev/null || true' EXIT
    until [ -s "$WORK/hub-port" ]; do kill -0 "$hub"; sleep 0.05; done
    HF_ENDPOINT=http://127.0.0.1:$(cat "$WORK/hub-port")
    rm "$WORK/hub-port"
    export HF_ENDPOINT HF_HOME=$WORK/hf-home HF_HUB_DISABLE_XET=1
fi
