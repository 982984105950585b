#!/usr/bin/env bash
# What the steps need and do not bring: programs, packages, documents and conversations. Days of training must
# not end for one that only the last step misses. Exit status 2: something is not there; each has a line.
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

status=0
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

for program in ultralong torchrun python3; do needs_program "$program" "2 and later" "make install"; done
[ -e "$WORK/hf" ] || needs_program hf 1 "pip install huggingface_hub, or put the model into $WORK/hf"
set -f # the patterns are words
[ -e "$WORK/rows-$TARGET" ] || for source in $SOURCES; do needs_files "$source" SOURCES 2; done
[ -e "$WORK/chats-$TARGET" ] || needs_files "$CHATS" CHATS 5
# A package that only some words of RULER come from, and those of the judge and of one format.
packages="transformers wonderwords"
case "$ENGINE" in
    vllm) needs_program vllm 8 "pip install vllm, or serve with ENGINE=llama.cpp" ;;
    llama.cpp)
        needs_program llama-server 8 "build llama.cpp, or serve with ENGINE=vllm"
        packages="$packages gguf" ;;
    *) lacks "ENGINE '$ENGINE' is not known" "known: vllm, llama.cpp" ;;
esac
needs_program curl 8 "install it with the packages of the system"
# shellcheck disable=SC2086 # words
if command -v python3 > /dev/null; then
    for package in $(python3 -c 'import sys
from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if find_spec(name) is None))' $packages); do
        lacks "the package $package, of steps 6 to 8, is not there" "pip install $package"
    done
fi
exit "$status"
