#!/usr/bin/env bash
# What steps need and do not bring: programs, packages, documents, conversations, and what earlier steps make.
# Every step looks for its own first, and run_all.sh for those of all, so that nothing that is missing ends a job
# after hours. Exit status 2: something is not there; each has a line.
#
#   NEEDED_STEPS="5 6" bash examples/llama3.1-8b/check_needs.sh [--mock] [1m|2m|4m]    (by default all steps)
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

steps=" ${NEEDED_STEPS:-1 2 3 4 5 6 7 8} " status=0 packages=()
for step in $steps; do
    [[ $step == [1-8] ]] || { echo "$0: NEEDED_STEPS has '$step'; steps are 1 to 8" >&2; exit 2; }
done
does() { [[ $steps == *" $1 "* ]]; }
lacks() { # WHAT WAY_OUT
    echo "$0: $1: $2" >&2
    status=2
}

needs_program() { # NAME STEP WAY_OUT
    command -v "$1" > /dev/null || lacks "the program $1, of step $2, is not there" "$3"
}

needs_files() { # WORD VARIABLE STEP: NAME=PATTERN, as prepare takes it
    local pattern=${1#*=}
    [ -e "$pattern" ] || compgen -G "$pattern" > /dev/null || lacks \
        "no file is $pattern, of step $3" "put them there, or name others with $2=NAME=PATTERN"
}

needs_folder() { # FOLDER STEP MAKER: unless a step that makes it is among these
    does "$3" || [ -e "$1" ] || lacks "$1, of step $2, is not there" "step $3 makes it"
}

finished() { # RUN STEP: says it if the run has iterations left; to tune it as it is may be what is wanted
    local trained='' name value
    does "$2" || ! [ -e "$1/config.yaml" ] || {
        read -r trained 2> /dev/null < "$1/latest_checkpointed_iteration.txt" || true
        while read -r name value; do
            [[ $name != train_iters: || ! $trained =~ ^[0-9]+$ || ! $value =~ ^[0-9]+$ || $trained -ge $value ]] ||
                echo "$0: note: $1 is at iteration $trained of $value: step $2 has not finished it" >&2
        done < "$1/config.yaml"
    }
}

exported=$WORK/Llama-3.1-8B-UltraLong-$TARGET
set -f # the patterns are words
needs_program ultralong "${steps:1:1} and later" "make install"
if does 4 || does 5 || does 6; then needs_program torchrun "4 to 6" "make install"; fi
if does 1 && [ ! -e "$WORK/hf" ]; then
    needs_program hf 1 "pip install huggingface_hub, or put the model into $WORK/hf"
fi
if does 2 && [ ! -e "$WORK/rows-$TARGET" ]; then
    needs_folder "$WORK/hf" 2 1
    for source in "${sources[@]}"; do needs_files "$source" SOURCES 2; done
fi
if does 3 && [ ! -e "$WORK/base" ]; then needs_folder "$WORK/hf" 3 1; fi
if does 4; then
    needs_folder "$WORK/base" 4 3
    needs_folder "$WORK/rows-$TARGET" 4 2
fi
if does 5; then
    needs_folder "$WORK/run-$TARGET" 5 4
    finished "$WORK/run-$TARGET" 4
    if [ ! -e "$WORK/chats-$TARGET" ]; then
        needs_folder "$WORK/hf" 5 1
        needs_files "$CHATS" CHATS 5
    fi
fi
if does 6; then
    results=$WORK/results-$TARGET
    if [ ! -e "$results/loss" ]; then
        needs_folder "$WORK/base" 6 3
        needs_folder "$WORK/rows-$TARGET" 6 2
        needs_folder "$WORK/run-$TARGET" 6 4
    fi
    needs_folder "$WORK/tuned-$TARGET" 6 5
    finished "$WORK/run-$TARGET" 4
    finished "$WORK/tuned-$TARGET" 5
    if [ ! -e "$results/ruler" ]; then packages+=(wonderwords); fi # some words of RULER
fi
if does 7; then
    needs_folder "$WORK/tuned-$TARGET" 7 5
    finished "$WORK/tuned-$TARGET" 5
fi
if does 8; then
    needs_folder "$exported" 8 7
    case "$ENGINE" in
        vllm) needs_program vllm 8 "pip install vllm, or serve with ENGINE=llama.cpp" ;;
        llama.cpp)
            needs_program llama-server 8 "build llama.cpp, or serve with ENGINE=vllm"
            [ -e "$exported-gguf" ] || needs_folder "$WORK/tuned-$TARGET" 8 5
            packages+=(gguf) ;;
        *) lacks "ENGINE '$ENGINE' is not known" "known: vllm, llama.cpp" ;;
    esac
    needs_program curl 8 "install it with the packages of the system"
    packages+=(transformers) # the judge
fi
if [ ${#packages[@]} != 0 ]; then
    needs_program python3 "6 and 8" "make install"
    if command -v python3 > /dev/null; then
        for package in $(python3 -c 'import sys
from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if find_spec(name) is None))' "${packages[@]}"); do
            lacks "the package $package, of steps 6 and 8, is not there" "pip install $package"
        done
    fi
fi
exit "$status"
