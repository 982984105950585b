#!/usr/bin/env bash
# Settings of the numbered scripts, which source this file with their own arguments:
#
#   bash examples/smollm2/05_train.sh [--cpu] [128k|256k]
#
# The first lines of each say what it takes. Each setting is a variable of the environment, and what is set
# there already stays. `--cpu` sets small values, for a look at every step without a GPU: factor 2, rows of
# 256 tokens, two iterations. The commands in the scripts are the same.
# shellcheck disable=SC2034 # the scripts use what is set here

CPU='' TARGET='' # some systems set CPU for every program
for word; do
    case "$word" in
        --cpu) CPU=1 ;;
        128k | 256k)
            [ "${TARGET:-$word}" = "$word" ] || { echo "$0: one target at a time, not $TARGET and $word" >&2; exit 2; }
            TARGET=$word
            ;;
        *) echo "$0: '$word' is not known; known: --cpu, 128k, 256k" >&2; exit 2 ;;
    esac
done
TARGET=${TARGET:-128k}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=examples/steps.sh
source "$here/../steps.sh"
root=$(cd "$here/../.." && pwd)
if [ -n "$CPU" ]; then
    # shellcheck source=examples/smollm2/cpu.sh
    source "$here/cpu.sh"
fi

WORK=${WORK:-$PWD/smollm2}
CACHE=${CACHE:-$WORK/cache} # what is fetched; one folder serves several WORKs
POSITIONS=8192 # that the model was trained for
case "$TARGET" in
    128k) SEQ_LENGTH=${SEQ_LENGTH:-131072} iterations="100 85" far=96 ;;
    256k) SEQ_LENGTH=${SEQ_LENGTH:-262144} iterations="60 40" far=52 ;; # a row takes four times as long
esac
MILLION_LENGTH=${MILLION_LENGTH:-1048576} # of million.sh
[[ ${GPUS:-1} == [124] ]] || { echo "$0: GPUS must be 1, 2 or 4, not '$GPUS'" >&2; exit 2; }
whole_number SEQ_LENGTH 131072
whole_number MILLION_LENGTH 131072
factor() { # POSITIONS_WANTED: the least whole factor that gives them; below 2 nothing would be extended
    local needed=$((($1 + POSITIONS - 1) / POSITIONS))
    echo $((needed > 2 ? needed : 2))
}
FACTOR=${FACTOR:-$(factor $((2 * SEQ_LENGTH)))} # twice what the length needs: docs/results.md says why
CORPUS_FLAGS=${CORPUS_FLAGS:-} # such as --indexes pypi, where there is no apt-get
VALID_FRACTION=${VALID_FRACTION:-0.05} # of the documents; the held-out packages are others
WORKERS=${WORKERS:-$(nproc)}
GPUS=${GPUS:-1} # for training and step 7: 1, 2 or 4; the first part is spread by rows, the others by context parallelism
VERIFY_LENGTH=${VERIFY_LENGTH:-512} # tokens of the text whose logits are compared
FIRST_LENGTH=${FIRST_LENGTH:-$((SEQ_LENGTH < 32768 ? SEQ_LENGTH : 32768))} # rows of the training's first part
FIRST_ITERS=${FIRST_ITERS:-${iterations% *}} # of 131,072 tokens each
TRAIN_ITERS=${TRAIN_ITERS:-${iterations#* }} # of one row of the target's length each
LR=${LR:-5e-4}                      # docs/results.md says how it was chosen
PRETRAIN_FLAGS=${PRETRAIN_FLAGS:-}
FROM=${FROM:-base} # of million.sh, in WORK
MILLION_ITERS=${MILLION_ITERS:-6} MILLION_LR=${MILLION_LR:-3e-4}
MILLION_FLAGS=${MILLION_FLAGS:-}
MILLION_FACTOR=${MILLION_FACTOR:-$(factor "$MILLION_LENGTH")}
MILLION_DEPTHS=${MILLION_DEPTHS:-0 50 100} # per cent; a needle and a passkey at each
CHAT_LENGTH=${CHAT_LENGTH:-$SEQ_LENGTH} # rows of conversations; none is longer
whole_number CHAT_LENGTH 131072
QUESTIONS=${QUESTIONS:-400}         # conversations about a sentence in a short text; 0: none
FAR_QUESTIONS=${FAR_QUESTIONS:-$far} # about many in a long one (0: none), of so many characters:
LONGEST_FAR=${LONGEST_FAR:-$((CHAT_LENGTH * 34 / 10))} SHORTEST_FAR=${SHORTEST_FAR:-$((CHAT_LENGTH * 2))}
SFT_FLAGS=${SFT_FLAGS:---num-epochs 1}
LENGTHS=${LENGTHS:-$(lengths 8192 $((SEQ_LENGTH / 4)) "$SEQ_LENGTH")}
DEPTHS=${DEPTHS:-0 11 22 33 44 56 67 78 89 100}
PROMPTS=${PROMPTS:-4}               # at every length and depth
BEFORE_PROMPTS=${BEFORE_PROMPTS:-1} # the same for the original model
PROMPT_SEED=${PROMPT_SEED:-20}      # the factor was chosen on prompts of seed 1234, the learning rate of 99
LOSS_ROWS=${LOSS_ROWS:-8} # of held-out packages
RULER_SHORT=${RULER_SHORT:-4096 8192} RULER_LONG=${RULER_LONG:-16384 32768 65536} # of ruler.sh
RULER_PROMPTS=${RULER_PROMPTS:-20} # a task and length; half as many of the long ones
RULER_TASKS=${RULER_TASKS:-niah_single_1 niah_single_2 niah_single_3 niah_multikey_1 niah_multikey_2 \
    niah_multikey_3 niah_multivalue niah_multiquery vt cwe fwe} # qa_1 and qa_2 need data of other places
CHOICES=${CHOICES:-0} # questions of choices.sh, from the first; 0: all 500
CHOICES_BATCH=${CHOICES_BATCH:-64} # questions at once, of choices.sh
EVALUATE_FLAGS=${EVALUATE_FLAGS:-}
QUESTION=${QUESTION:-What is the capital of France?}
ANSWER_TOKENS=${ANSWER_TOKENS:-64}
for setting in WORKERS VERIFY_LENGTH FIRST_LENGTH FIRST_ITERS TRAIN_ITERS MILLION_ITERS MILLION_FACTOR SHORTEST_FAR \
    LONGEST_FAR PROMPTS BEFORE_PROMPTS LOSS_ROWS RULER_PROMPTS CHOICES_BATCH ANSWER_TOKENS; do
    whole_number "$setting" 2 '' # now, not in step 5 or 7
done
for setting in LENGTHS RULER_SHORT RULER_LONG; do
    different "$setting" "$LENGTH" '8192 16384' tokens
done
for setting in DEPTHS MILLION_DEPTHS; do
    different "$setting" "$DEPTH" '0 50 100' 'per cent, 0 to 100'
done
different RULER_TASKS "$TASK" 'vt cwe'
for setting in QUESTIONS FAR_QUESTIONS CHOICES; do
    [ "${!setting}" = 0 ] || whole_number "$setting" 400 ''
done

rows() { # FOLDER PARTS_OF_THE_CORPUS SEQ_LENGTH [FLAG...]: prepared, unless it is there
    local sources=() part file
    for part in $2; do
        for file in "$WORK/corpus/$part"/*.jsonl; do
            [ ! -e "$file" ] || sources+=(--source "$(basename "$file" .jsonl)=$file")
        done
    done
    [ -e "$1" ] || [ ${#sources[@]} != 0 ] || {
        echo "$0: $WORK/corpus has no text of '$2': 02_get_corpus.sh writes it" >&2
        exit 1
    }
    once "$1" ultralong prepare "${sources[@]}" --tokenizer "$WORK/hf" --output "$1" --seq-length "$3" \
        --length-sampling none --workers "$WORKERS" "${@:4}"
}
