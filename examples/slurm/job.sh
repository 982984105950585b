#!/usr/bin/env bash
# What the SLURM scripts have in common: one torchrun a node, its signals, and what the run's exit
# status asks for. It is sourced, by a script that has set `container`: the words between srun's options
# and a command that is to run in the container.
#
#   RECIPE LOAD DATA SAVE   of `ultralong pretrain RECIPE --load --data-path --save`
#   GPUS_PER_NODE (8)       ranks that every node starts
#   LOGS ($SAVE-logs)       logs, one file a rank
#   REQUEUE (1)             0: a job never puts itself back into the queue; the next of a chain goes on
#   MAX_LOST (2)            starts in a row that may end without a new checkpoint
#   SCRIPTS                 the folder of this file; by default examples/slurm where sbatch was called
# shellcheck disable=SC2154 # the script that sources it sets `container` and `scripts`
#
# | the run's exit status   | this script                                                           |
# | ----------------------- | --------------------------------------------------------------------- |
# | 0: complete             | ends with 0, and takes the rest of its chain out of the queue         |
# | 75: saved, wants on     | is requeued; with REQUEUE=0 it ends with 75                           |
# | 65: numbers not finite  | ends with 65, the rest of the chain too: a person has to look         |
# | 74: cannot save         | ends with 74, the same way                                            |
# | 2: bad input            | found by a dry run before the ranks start; ends with 2, the same way  |
# | none: rank or node lost | is requeued, unless MAX_LOST starts in a row made no new checkpoint   |

: "${RECIPE:?a recipe, such as llama3.1-8b-1m}" "${LOAD:?checkpoint of convert import}"
: "${DATA:?folder of prepare}" "${SAVE:?folder of the run, on a disk that all nodes share}"
LOGS=${LOGS:-$SAVE-logs}
step=
asked_to_stop=

say() { echo "[$(date '+%F %T') job $SLURM_JOB_ID] $*"; }

last_iteration() { # of the newest checkpoint; 0: none
    cat "$SAVE/latest_checkpointed_iteration.txt" 2>/dev/null || echo 0
}

pass_on() { # USR1 comes before the time is over (--signal), TERM where the job is to go
    asked_to_stop=1
    say "asked to stop: the ranks save at the end of their step"
    [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null || true # srun hands it to the nodes
}

wait_for_step() { # a signal ends `wait`, not the step
    local status=0
    while kill -0 "$step" 2>/dev/null; do
        status=0
        wait "$step" || status=$?
    done
    say "srun has ended with $status"
}

requeue() {
    if [ "${REQUEUE:-1}" = 0 ]; then
        say "$1: the next job of the chain goes on"
        exit 75
    fi
    # A job that was cancelled stays cancelled; one that is preempted is put back by SLURM itself.
    if [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
        say "$1: requeue"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit 75
}

finish() { # STATUS TEXT: nothing is left for later jobs of the chain
    say "$2"
    if [ "${REQUEUE:-1}" = 0 ]; then
        scancel --state=PENDING --name="$SLURM_JOB_NAME" --user="$USER"
    fi
    exit "$1"
}

lost() { # a start without a status: a rank or a node was lost, or it did not come up
    local count=0
    if [ "$(last_iteration)" = "$1" ]; then
        count=$(($(cat "$LOGS/lost" 2>/dev/null || echo 0) + 1))
    fi
    echo "$count" > "$LOGS/lost"
    if [ "$count" -ge "${MAX_LOST:-2}" ]; then
        rm "$LOGS/lost"
        finish 1 "$count starts in a row ended without a checkpoint: see $LOGS"
    fi
    requeue "the run was lost"
}

run_job() {
    local gpus=${GPUS_PER_NODE:-8} nodes=$SLURM_JOB_NUM_NODES before status=0
    local words=(pretrain "$RECIPE" --load "$LOAD" --data-path "$DATA" --save "$SAVE" "$@")
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    local logs=$LOGS/job-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
    export MASTER_ADDR MASTER_PORT
    mkdir -p "$logs"
    say "start ${SLURM_RESTART_COUNT:-0} on $nodes nodes of $gpus ranks; they meet at $MASTER_ADDR"

    srun --nodes=1 --ntasks=1 "${container[@]}" \
        env WORLD_SIZE=$((nodes * gpus)) ultralong "${words[@]}" --dry-run > "$logs/dry-run" || status=$?
    if [ "$status" = 2 ]; then finish 2 "bad input: the message stands above"; fi

    before=$(last_iteration)
    rm -f "$SAVE/exit_status"
    trap pass_on USR1 TERM
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 "${container[@]}" \
        bash "$scripts/node.sh" "$nodes" "$gpus" "$logs" "${words[@]}" &
    step=$!
    wait_for_step

    status=$(cat "$SAVE/exit_status" 2>/dev/null || echo none)
    say "the run's exit status is $status, its newest checkpoint iteration $(last_iteration)"
    case "$status" in
        0) finish 0 "complete" ;;
        75) rm -f "$LOGS/lost"; requeue "saved" ;;
        65 | 74) finish "$status" "a person has to look: see the end of $logs" ;;
        *) if [ -n "$asked_to_stop" ]; then requeue "stopped before its first step"; fi; lost "$before" ;;
    esac
}
