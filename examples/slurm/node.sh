#!/usr/bin/env bash
# One node's part of a step: node.sh FOLDER STOP RANKS WORD...  starts `ultralong WORD...` on RANKS ranks,
# or alone where RANKS is 0. The file STOP says what a signal says. Into FOLDER it writes logs, the exit
# status of what has ended in order (exit_status), and that this node is done (ended-N).
#
# SLURM hands a signal to every process of a step. torchrun would kill its ranks 30 seconds after one,
# and a step of training takes longer; so torchrun does not hear it, and the ranks get it once.
# shellcheck disable=SC2329 # functions that the trap calls
set -euo pipefail
folder=$1 stop=$2 ranks=$3
shift 3
child='' stopping='' told=''
trap 'stopping=1' USR1 TERM
trap ': > "$folder/ended-$SLURM_NODEID"' EXIT

ranks_here() {
    local children pid
    for children in /proc/"$child"/task/*/children; do
        # shellcheck disable=SC2013 # words, not lines
        for pid in $(cat "$children" 2>/dev/null); do
            if tr '\0' '\n' < "/proc/$pid/environ" 2>/dev/null | grep -q '^RANK='; then echo "$pid"; fi
        done
    done
}

hears_usr1() { # signal 10 is bit 9 of the mask of caught signals
    local caught
    caught=$(sed -n 's/^SigCgt:\s*//p' "/proc/$1/status" 2>/dev/null) || return 1
    [ $((0x${caught:-0} & 0x200)) -ne 0 ]
}

tell() { # once: the same signal again means "at once"
    local rank all hearing=
    told=1
    trap '' USR1 TERM # one more would kill a $(...) of this function, and set -e this script
    all=$(ranks_here)
    for rank in $all; do if hears_usr1 "$rank"; then hearing=1; fi; done
    # Ranks that are still importing do not listen, and have nothing to save.
    if [ -z "$hearing" ]; then kill -KILL "$child" 2>/dev/null || true; fi
    for rank in $all; do
        if hears_usr1 "$rank"; then kill -USR1 "$rank" || true; else kill -KILL "$rank" || true; fi
    done
}

start() {
    trap '' USR1 TERM
    export PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT # torchrun's --signals-to-handle, where it has it
    # Ranks that end in order leave the status there and exit with 0: torchrun has nothing to complain of.
    export ULTRALONG_EXIT_STATUS=$folder/exit_status
    local tee=()
    if [ "$SLURM_NODEID" = 0 ]; then tee=(--tee 0:3); fi # rank 0 speaks for the job
    # --no-python: the ranks take the program that the dry run takes, not a package in the working folder.
    exec torchrun --nnodes "$SLURM_STEP_NUM_NODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$ranks" \
        --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
        --log-dir "$folder/node-$SLURM_NODEID" --redirects 3 "${tee[@]}" --no-python ultralong "$@"
}

if [ -e "$stop" ]; then exit 0; fi
if [ "$ranks" = 0 ]; then ultralong "$@" & else start "$@" & fi
child=$!
while kill -0 "$child" 2>/dev/null; do
    sleep 1 &
    wait $! || true # a signal ends `wait`
    if [ -e "$stop" ]; then stopping=1; fi
    if [ -n "$stopping" ] && [ -z "$told" ]; then tell; fi
done
status=0
wait "$child" || status=$?
if [ -n "$stopping" ]; then status=0; fi # what it has come to stands in exit_status
recorded=
if [ "$ranks" = 0 ]; then recorded=1; fi
if [ "$SLURM_NODEID $status" = "0 127" ]; then recorded=1; fi # no torchrun: another start has none either
if [ -n "$recorded" ] && [ -z "$stopping" ] && [ "$status" -lt 128 ]; then # above: killed
    echo "$status" > "$folder/exit_status.partial"
    mv "$folder/exit_status.partial" "$folder/exit_status"
fi
exit "$status"
