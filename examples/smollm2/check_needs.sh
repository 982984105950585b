#!/usr/bin/env bash
# What the numbered steps need and do not bring: programs, GPUs, apt-get, and room on the disk. run_all.sh looks for
# all of it first, so that nothing that is missing ends a run after its training. What is made already needs
# nothing. Exit status 2: something is not there; each has a line.
#
#   bash examples/smollm2/check_needs.sh [--cpu] [128k|256k]
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

status=0
lacks() { # WHAT WHAT_TO_DO
    echo "$0: $1: $2" >&2
    status=2
}

for program in ultralong torchrun python; do
    command -v "$program" > /dev/null || lacks "the program $program is not there" \
        "make install, and source .venv/bin/activate"
done
if ! [ -e "$WORK/hf" ] || ! [ -e "$WORK/corpus" ]; then
    python -m pip --version > /dev/null 2>&1 || lacks "pip, of steps 1 and 2, is not there" "python -m ensurepip"
fi
if ! [ -e "$WORK/corpus" ] && [[ $CORPUS_FLAGS != *--indexes\ pypi* ]]; then
    for program in apt-get dpkg-deb; do
        command -v "$program" > /dev/null || lacks "the program $program, of step 2, is not there" \
            'CORPUS_FLAGS="--indexes pypi" takes only the sources that need none'
    done
fi
if [ -z "$CPU" ] && command -v python > /dev/null; then
    visible=$(python -c 'import torch; print(torch.cuda.device_count())' 2> /dev/null || echo 0)
    [ "$visible" -ge "$GPUS" ] || lacks "torch sees $visible GPUs, and GPUS is $GPUS" \
        "set GPUS to what nvidia-smi lists, or look at every step without a GPU: run_all.sh --cpu"
fi
room() { # FOLDER GIGABYTES: of the nearest folder above it that is there
    local folder=$1 free
    until [ -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(($(df --output=avail --block-size=1MB "$folder" | tail -n 1)))
    [ "$free" -ge "${2}000" ] || lacks "the disk of $1 has $free MB free, and the steps need $2,000 MB there" \
        "make room, or set WORK or CACHE to a folder of another disk"
}
# three checkpoints of the training, four copies of the weights, rows; packages and the model
work=9 cache=2
if [[ $CACHE == "$WORK"/* ]]; then work=$((work + cache)); fi
[ -e "$WORK/tuned-$TARGET" ] || room "$WORK" "$work"
[ -e "$WORK/corpus" ] || room "$CACHE" "$cache"
exit "$status"
