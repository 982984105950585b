#!/usr/bin/env bash
# What the SLURM scripts have in common: steps of a job, its signals, and what the exit status of a
# step asks for. A batch script sets `scripts` (the folder of this file), sources this file, and calls
# `run VERB WORD...` as often as it needs, then `complete`.
#
#   CONTAINER (pyxis)       pyxis, apptainer, or none
#   IMAGE MOUNTS            the container, and what it sees of the disks beside the working folder
#   GPUS_PER_NODE (8)       ranks that every node starts
#   LOGS                    logs, one file a rank; by default $SAVE-logs, or JOBNAME-logs
#   REQUEUE (1)             0: a job never puts itself back into the queue; the next of a chain continues
#   MAX_LOST (3)            starts in a row that may end without a new checkpoint
#   WAIT_SECONDS (300)      after one node has ended, the others have so long; then the step is killed
# shellcheck disable=SC2154 # the script that sources it sets `scripts`
#
# | the exit status        | this script                                                           |
# | ---------------------- | --------------------------------------------------------------------- |
# | 0: complete            | continues, ends with 0, and takes the rest of its chain out of the queue |
# | 75: saved, wants on    | is requeued; with REQUEUE=0 it ends with 75                           |
# | 65: numbers not finite | ends with 65, the rest of the chain too: a person has to look         |
# | 73: folder taken over  | ends with 73, the same way                                            |
# | 74: cannot save        | ends with 74, the same way                                            |
# | 2: bad input           | ends with 2, the same way; most of it is found by a dry run           |
# | none: something lost   | is requeued, as 75                                                    |
#
# MAX_LOST starts in a row without a new checkpoint end the job, and its chain, however each of them
# ended: saved too early, stopped, lost, or killed by SLURM with this script.

asked_to_stop=
step= # srun's process
logs= # folder of this start of the job
out=1 # where what a step prints goes
trap pass_on USR1 TERM # first of all: it may come at any time

say() { echo "[$(date '+%F %T') job $SLURM_JOB_ID] $*"; }

pass_on() { # USR1 comes before the time is over (--signal), TERM where the job is to go
    if [ -n "$asked_to_stop" ]; then return; fi # ranks take the same signal again as "at once"
    asked_to_stop=1
    say "asked to stop: ranks that train save at the end of their step"
    if [ -n "$logs" ]; then : > "$logs/stop"; fi # for nodes that srun has not reached yet
    if [ -n "$step" ]; then kill -USR1 "$step" 2>/dev/null || true; fi # srun hands it to the nodes
}

set_container() { # the words between srun's options and a command that is to run in the container
    local mounts=${MOUNTS:-/shared:/shared},$PWD:$PWD
    case "$scripts/" in "$PWD"/*) ;; *) mounts+=,$scripts:$scripts ;; esac
    case "${CONTAINER:=pyxis}" in
        pyxis)
            container=(--container-image="${IMAGE:?file made by enroot import, or a registry address}"
                --container-mounts="$mounts" --container-workdir="$PWD") ;; # after srun's own options
        apptainer)
            container=(apptainer exec --nv --bind "$mounts" --pwd "$PWD"
                "${IMAGE:?.sif file made by apptainer build}") ;;
        none) container=() ;;
        *) say "CONTAINER=$CONTAINER is not known; known: pyxis, apptainer, none"; exit 2 ;;
    esac
}

value_of() { # FLAG WORD...: what follows a flag
    local flag=$1
    shift
    while [ $# -gt 0 ]; do
        case "$1" in
            "$flag") echo "${2:-}"; return ;;
            "$flag="*) echo "${1#*=}"; return ;;
        esac
        shift
    done
}

progress() { # VERB: changes where a start has brought the work on
    local partial
    if [ -n "$save" ]; then
        echo "iteration-$(cat "$save/latest_checkpointed_iteration.txt" 2>/dev/null || echo 0)"
    else # of an unfinished output the size
        partial=$(dirname "${output:-$PWD}")/.$(basename "${output:-none}").partial
        echo "$1-$(du --summarize --bytes "$partial" 2>/dev/null | cut -f 1)"
    fi
}

count_start() { # starts of this job, or of this chain, since the last progress
    local key=${CHAIN:-$SLURM_JOB_ID} old_key='' old_progress='' count=0
    before=$(progress "$1")
    read -r old_key old_progress count 2>/dev/null < "$LOGS/starts" || true
    if [ "$old_key $old_progress" != "$key $before" ]; then count=0; fi
    starts=$((count + 1))
    if [ "$starts" -gt "${MAX_LOST:-3}" ]; then give_up; fi # SLURM killed this script in the last one
    echo "$key $before $starts" > "$LOGS/starts"
}

give_up() {
    rm -f "$LOGS/starts"
    finish 1 "${MAX_LOST:-3} starts in a row ended without progress: see $LOGS"
}

requeue() { # VERB TEXT
    local try
    if [ "$starts" -ge "${MAX_LOST:-3}" ] && [ "$(progress "$1")" = "$before" ]; then give_up; fi
    if [ "${REQUEUE:-1}" = 0 ]; then
        say "$2: the next job of the chain continues"
        exit 75
    fi
    say "$2: requeue"
    for ((try = 0; try < 6; try++)); do # slurmctld may be away for a moment
        # A job that was cancelled stays cancelled; one that is preempted may be put back by SLURM itself.
        case "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T || echo no answer)" in
            RUNNING) if scontrol requeue "$SLURM_JOB_ID"; then break; fi ;;
            "no answer") ;;
            *) break ;;
        esac
        sleep 10
    done
    exit 75
}

finish() { # STATUS TEXT: nothing is left for later jobs of the chain
    say "$2"
    if [ "${REQUEUE:-1}" = 0 ]; then
        scancel --state=PENDING --name="$SLURM_JOB_NAME" --user="${SLURM_JOB_USER:-$(id --user --name)}" || true
    fi
    exit "$1"
}

complete() { finish 0 "complete"; }

start_step() { # FOLDER NODES RANKS WORD...: of srun; RANKS 0: the command alone, without torchrun
    local folder=$1 nodes=$2
    shift 2
    mkdir -p "$folder"
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0 \
        --wait="${WAIT_SECONDS:-300}" "${container[@]}" bash "$scripts/node.sh" "$folder" "$logs/stop" "$@" >&"$out" &
    step=$!
    wait_for_step "$folder" "$nodes"
    step=
}

wait_for_step() { # srun does not always see that the daemon of its step is gone: nodes leave a file
    local status=0 over='' ended
    while kill -0 "$step" 2>/dev/null; do
        sleep 1 &
        wait $! || true # a signal ends `wait`, not the step
        ended=("$1"/ended-*)
        if [ -e "${ended[0]}" ] && [ ${#ended[@]} -ge "$2" ]; then
            : "${over:=$SECONDS}"
            if [ $((SECONDS - over)) -ge "${WAIT_SECONDS:-300}" ]; then
                say "all nodes have ended, srun has not: killed"
                kill -KILL "$step" 2>/dev/null || true
            fi
        fi
    done
    wait "$step" || status=$?
    say "srun has ended with $status"
}

how_stopped() { # VERB
    if [ "$(progress "$1")" = "$before" ]; then echo "stopped with nothing to save"; else echo saved; fi
}

status_of() { cat "$1/exit_status" 2>/dev/null || echo none; }

begin() { # WORD...: of the command; once a job
    save=$(value_of --save "$@") output=${OUTPUT:-$(value_of --output "$@")}
    if [ -n "$logs" ]; then return; fi
    LOGS=${LOGS:-${save:-$PWD/$SLURM_JOB_NAME}-logs}
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # containers may have no scontrol
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    export MASTER_ADDR MASTER_PORT
    mkdir -p "$LOGS/job-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"
    logs=$LOGS/job-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
    set_container
}

run() { # VERB WORD...: comes back where it is complete, and ends or requeues the job where not
    local nodes=$SLURM_JOB_NUM_NODES gpus=${GPUS_PER_NODE:-8} name=$1 folder status
    case "$1 ${2:-}" in
        "evaluate report" | prepare* | convert* | plan*) nodes=1 gpus=0 ;;
    esac
    case "$1" in evaluate | convert) name=$1-${2:-} ;; esac
    begin "$@"
    count_start "$name"
    folder=$logs/$name
    say "start ${SLURM_RESTART_COUNT:-0} of $name on $nodes nodes of $gpus ranks; they meet at $MASTER_ADDR"

    case "$1" in pretrain | sft)
        if [ -n "$asked_to_stop" ]; then requeue "$name" "stopped before its dry run"; fi
        exec {out}> "$folder.yaml" # the resolved configuration
        WORLD_SIZE=$((nodes * gpus)) start_step "$folder-dry-run" 1 0 "$@" --dry-run
        exec {out}>&-
        out=1
        status=$(status_of "$folder-dry-run")
        if [ -n "$asked_to_stop" ]; then requeue "$name" "stopped in its dry run"; fi
        case "$status" in
            0) ;;
            2) finish 2 "bad input: the message stands above" ;;
            none) requeue "$name" "the dry run was lost" ;;
            *) finish "$status" "the dry run failed with $status: see above" ;;
        esac ;;
    esac

    if [ -n "$asked_to_stop" ]; then requeue "$name" "stopped before its first step"; fi
    start_step "$folder" "$nodes" "$gpus" "$@"
    status=$(status_of "$folder")
    say "the exit status of $name is $status; $(progress "$name")"
    case "$status" in
        0) ;;
        75) requeue "$name" "$(how_stopped "$name")" ;;
        2) finish 2 "bad input: the message stands above" ;;
        65 | 73 | 74) finish "$status" "a person has to look: see the end of $folder" ;;
        [0-9]*) finish "$status" "$name failed with $status: see above" ;;
        *)
            if [ -n "$asked_to_stop" ]; then requeue "$name" "$(how_stopped "$name")"; fi
            requeue "$name" "the run was lost" ;;
    esac
}

# shellcheck disable=SC2329 # the script calls the functions
stage() { # SCRIPT WORD...: a numbered script of an example; its commands become steps of this job
    ultralong() { run "$@"; }
    torchrun() { # --nproc-per-node RANKS -m megatron_ultralong VERB WORD...
        local GPUS_PER_NODE=$2
        shift 4
        run "$@"
    }
    local script=$1
    shift
    # shellcheck disable=SC1090
    source "$script"
    complete
}
