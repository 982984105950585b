#!/usr/bin/env bash
# Settings of the numbered scripts, which source this file with their own arguments:
#
#   bash examples/llama3.1-8b/04_pretrain.sh [--mock] [1m|2m|4m]
#
# The first lines of each say what it takes, measured or computed from `ultralong plan`. Each setting is a
# variable of the environment, and what is set there already stays. `--mock` sets small values and starts
# small stand-ins for the Hugging Face Hub and vLLM; the commands in the scripts are the same.

MOCK='' TARGET=''
words=("$@")
for word; do
    case "$word" in
        --mock) MOCK=1 ;;
        1m | 2m | 4m)
            [ "${TARGET:-$word}" = "$word" ] || { echo "$0: one target at a time, not $TARGET and $word" >&2; exit 2; }
            TARGET=$word
            ;;
        *) echo "$0: '$word' is not known; known: --mock, 1m, 2m, 4m" >&2; exit 2 ;;
    esac
done
TARGET=${TARGET:-1m}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=examples/steps.sh
source "$here/../steps.sh"
if [ -n "$MOCK" ]; then
    # shellcheck source=examples/llama3.1-8b/mock/settings.sh
    source "$here/mock/settings.sh"
fi

MODEL_ID=${MODEL_ID:-meta-llama/Llama-3.1-8B-Instruct}
WORK=${WORK:-$PWD/llama3.1-8b} # on a disk that all nodes share
case "$TARGET" in # longer rows cost more: fewer of them in evaluations
    1m) SEQ_LENGTH=${SEQ_LENGTH:-1048576} PROMPTS=${PROMPTS:-5} LOSS_ROWS=${LOSS_ROWS:-8} ;;
    2m) SEQ_LENGTH=${SEQ_LENGTH:-2097152} PROMPTS=${PROMPTS:-2} LOSS_ROWS=${LOSS_ROWS:-4} ;;
    4m) SEQ_LENGTH=${SEQ_LENGTH:-4194304} PROMPTS=${PROMPTS:-1} LOSS_ROWS=${LOSS_ROWS:-2} ;;
esac
whole_number SEQ_LENGTH 1048576
RECIPE=${RECIPE:-llama3.1-8b-$TARGET}
# SOURCES: words for `prepare --source`, NAME=PATTERN for each source of documents.
set -f # prepare expands the patterns itself
# shellcheck disable=SC2034,SC2206 # several words, for scripts; those of a WORK with spaces are one
sources=(${SOURCES:-"web=$WORK/corpus/web/*.jsonl.zst" "books=$WORK/corpus/books/*.parquet"})
set +f
MAX_TOKENS=${MAX_TOKENS:-1300000000} # the paper's 1B; 150 iterations of 8.4M tokens take 1.26B
WORKERS=${WORKERS:-$(nproc)}
RANKS=${RANKS:-8}                    # of this node; several nodes: docs/clusters.md
PRETRAIN_FLAGS=${PRETRAIN_FLAGS:-}   # more flags, such as --context-parallel-size 1 --offload-activations
CHATS=${CHATS:-chats=$WORK/chats/*.jsonl} # NAME=PATTERN, for `prepare chat --source`
CHAT_TEMPLATE=${CHAT_TEMPLATE:-llama3.1}
CHAT_LENGTH=${CHAT_LENGTH:-8192} # tokens of a row of conversations
SFT_RECIPE=${SFT_RECIPE:-llama3.1-8b-sft}
SFT_FLAGS=${SFT_FLAGS:-}
LAYOUT_FLAGS=${LAYOUT_FLAGS:---tensor-model-parallel-size 8 --sequence-parallel} # of evaluations
LENGTHS=${LENGTHS:-$(lengths 131072 $((SEQ_LENGTH / 4)) $((SEQ_LENGTH / 2)) "$SEQ_LENGTH")}
DEPTHS=${DEPTHS:-0 11 22 33 44 56 67 78 89 100} # PROMPTS are at every length and depth
RULER_LENGTHS=${RULER_LENGTHS:-$((SEQ_LENGTH < 131072 ? SEQ_LENGTH : 131072))}
RULER_SAMPLES=${RULER_SAMPLES:-25} # of every task
# The tasks that need no files; docs/evaluation.md has those of the others.
RULER_FLAGS=${RULER_FLAGS:---prompt-template chat
    --tasks niah_single_1 niah_multikey_2 niah_multikey_3 vt cwe fwe}
QUESTION=${QUESTION:-Why is it hard for a language model to read a million tokens?}
ANSWER_TOKENS=${ANSWER_TOKENS:-256}
SHORT_LENGTH=${SHORT_LENGTH:-4096} # the paper: documents below are taken seldom, those above LONG_LENGTH often
LONG_LENGTH=${LONG_LENGTH:-8192}
PORT=${PORT:-8000}
ENGINE=${ENGINE:-vllm}                # or llama.cpp
SERVE_RANKS=${SERVE_RANKS:-$RANKS}    # GPUs that share the heads
SERVE_DTYPE=${SERVE_DTYPE:-bfloat16}
SERVE_FLAGS=${SERVE_FLAGS:-}          # more flags of the engine
CHECK_TOKENS=${CHECK_TOKENS:-9216}    # of a prompt, more than the original context
# Nats. Right engines differ by up to 2.4e-4 in float32, and wrong ones by 1.9 and more; bfloat16 rounds.
CHECK_TOLERANCE=${CHECK_TOLERANCE:-0.5}
SERVE_SECONDS=${SERVE_SECONDS:-0} # 0: until it is interrupted
for setting in WORKERS PROMPTS LOSS_ROWS RULER_SAMPLES ANSWER_TOKENS CHECK_TOKENS; do
    whole_number "$setting" 2 '' # now, not in step 6 or 8
done
whole_number PORT 8000 ''
for setting in LENGTHS RULER_LENGTHS; do
    different "$setting" "$LENGTH" '131072 262144' tokens
done
different DEPTHS "$DEPTH" '0 50 100' 'per cent, 0 to 100'
for setting in RANKS SERVE_RANKS; do
    case "${!setting}" in gpu | cpu | auto) ;; *) whole_number "$setting" 8 '' ;; esac # words of torchrun
done

declare -F inside > /dev/null || inside() { "$@"; } # where the commands run: of a job of SLURM see its job.sh
needs() { # STEP: what it takes is there, or one line for each that is not
    NEEDED_STEPS=$1 inside bash "$here/check_needs.sh" "${words[@]}"
}
