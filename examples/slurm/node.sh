#!/usr/bin/env bash
# One node's part of a job: node.sh NODES RANKS LOGS WORD...  starts `ultralong WORD...` on RANKS ranks.
#
# SLURM hands a signal to every process of a step. torchrun would kill its ranks 30 seconds after one,
# and a step of training takes longer; so torchrun does not hear it, and the ranks get it once.
# shellcheck disable=SC2329 # functions that the trap calls
set -euo pipefail
nodes=$1 ranks=$2 logs=$3
shift 3

ranks_here() {
    local children child
    for children in /proc/"$torchrun"/task/*/children; do
        # shellcheck disable=SC2013 # words, not lines
        for child in $(cat "$children"); do
            if tr '\0' '\n' < "/proc/$child/environ" 2>/dev/null | grep -q '^RANK='; then echo "$child"; fi
        done
    done
}

hears_usr1() { # signal 10 is bit 9 of the mask of caught signals
    local caught
    caught=$(sed -n 's/^SigCgt:\s*//p' "/proc/$1/status" 2>/dev/null) || return 1
    [ $((0x${caught:-0} & 0x200)) -ne 0 ]
}

pass_on() {
    local rank
    for rank in $(ranks_here); do
        # A rank that is still importing does not listen, and has nothing to save.
        if hears_usr1 "$rank"; then kill -USR1 "$rank" || true; else kill -KILL "$rank" || true; fi
    done
}

tee=()
if [ "$SLURM_NODEID" = 0 ]; then tee=(--tee 0:3); fi # rank 0 speaks for the job
torchrun=
trap 'if [ -n "$torchrun" ]; then pass_on; fi' USR1 TERM
(
    trap '' USR1 TERM
    export PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT # torchrun's --signals-to-handle, where it has it
    exec torchrun --nnodes "$nodes" --node-rank "$SLURM_NODEID" --nproc-per-node "$ranks" \
        --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
        --log-dir "$logs/node-$SLURM_NODEID" --redirects 3 "${tee[@]}" \
        -m megatron_ultralong "$@"
) &
torchrun=$!
status=0
while kill -0 "$torchrun" 2>/dev/null; do # a signal ends `wait`, not torchrun
    status=0
    wait "$torchrun" || status=$?
done
exit "$status"
