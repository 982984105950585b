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
#   MAX_LOST (3)            starts in a row that may end without progress
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
# MAX_LOST starts of a step in a row without progress end the job, and its chain, however each of them
# ended: saved too early, stopped, lost, or killed by SLURM with this script. Progress is a new checkpoint,
# or more finished parts (documents' shards, samples, tensors) than any start before had.

asked_to_stop=
step=         # srun's process
srun_status=0 # of the last step
num_steps=0   # of this start of the job
logs=         # folder of this start of the job
counted=      # file with the number of starts of this step
out=1         # where what a step prints goes
trap pass_on USR1 TERM # first of all: it may come at any time
scripts=$(realpath --no-symlinks "$scripts") # mounts need a whole path

say() { echo "[$(date '+%F %T') job $SLURM_JOB_ID] $*"; }

pass_on() { # USR1 comes before the time is over (--signal), TERM where the job is to go
    if [ -n "$asked_to_stop" ]; then return; fi # ranks take the same signal again as "at once"
    asked_to_stop=1
    say "asked to stop: ranks that train save at the end of their step"
    if [ -n "$logs" ]; then : > "$logs/stop"; fi # for nodes that srun has not reached yet
    if [ -n "$step" ]; then kill -USR1 "$step" 2>/dev/null || true; fi # srun hands it to the nodes
}

check_settings() { # now: a job that counts wrongly is requeued forever
    local name least=0
    for name in GPUS_PER_NODE WAIT_SECONDS MAX_LOST; do
        if [ "$name" = MAX_LOST ]; then least=1; fi
        [[ ${!name:-1} =~ ^(0|[1-9][0-9]{0,8})$ && ${!name:-1} -ge $least ]] ||
            finish 2 "$name must be a whole number, $least or more, not '${!name}'"
    done
    [[ ${REQUEUE:-1} == [01] ]] || finish 2 "REQUEUE must be 1 or 0, not '$REQUEUE'"
}

set_container() { # the words between srun's options and a command that is to run in the container
    local mounts=${MOUNTS:-/shared:/shared},$PWD:$PWD,$LOGS:$LOGS # node.sh writes to LOGS
    local examples=${scripts%/*} # check_needs.sh of an example is beside this folder
    case "$scripts/" in "$PWD"/*) ;; *) mounts+=,$examples:$examples ;; esac
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

value_of() { # FLAG WORD...: what follows a flag, the last time
    local flag=$1 value=''
    shift
    while [ $# -gt 0 ]; do
        case "$1" in
            "$flag") value=${2:-} ;;
            "$flag="*) value=${1#*=} ;;
        esac
        shift
    done
    echo "$value"
}

destination_of() { # WORD...: DST of `convert import` and `convert export`, behind the verb
    local word takes_value='' positional=()
    for word; do
        if [ -n "$takes_value" ]; then takes_value=''; continue; fi
        case "${word//_/-}" in
            --*=* | --verify | --no-verify | --tokenizer | --no-tokenizer) ;;
            --verify-checksums | --no-verify-checksums | --json | --no-json) ;;
            --*) takes_value=1 ;;
            *) positional+=("$word") ;;
        esac
    done
    echo "${positional[1]:-}"
}

output_of() { # WORD...: the folder that a command without --save makes, under its real name
    local output
    case "$1 ${2:-}" in
        "convert import" | "convert export") output=$(destination_of "${@:3}") ;;
        *) output=$(value_of --output "$@") ;;
    esac
    if [ -n "$output" ]; then realpath --canonicalize-missing "$output"; fi
}

progress() { # iteration of the last checkpoint; without --save the parts that are finished
    local folder places=() records shards
    if [ -n "$save" ]; then
        cat "$save/latest_checkpointed_iteration.txt" 2>/dev/null || echo 0
        return
    fi
    # OUTPUT is made in .OUTPUT.partial, and OUTPUT/NAME of several models in OUTPUT/.NAME.partial.
    for folder in "$output" "${output%/*}/.${output##*/}.partial"; do
        if [ -n "$output" ] && [ -d "$folder" ]; then places+=("$folder"); fi
    done
    if [ ${#places[@]} = 0 ]; then echo 0; return; fi
    records=$(find "${places[@]}" -maxdepth 2 -type f \( -name finished.jsonl -o -name samples.jsonl \) \
        -exec cat {} + 2>/dev/null | wc -l) || true
    shards=$(find "${places[@]}" -maxdepth 2 -type d -name 'shard-*' ! -name '*.partial-*' 2>/dev/null | wc -l) || true
    echo $((records + shards))
}

has_progress() { # since this start began
    local now
    now=$(progress)
    if [ -n "$save" ]; then [ "$now" != "$before" ]; else [ "$now" -gt "$before" ]; fi
}

count_start() { # WORD...: starts of a step since its last progress, in this job or chain
    local best='' count=0 now
    # A file for every command: another one that comes before it again does not reset the count.
    counted=$LOGS/starts-${CHAIN:-$SLURM_JOB_ID}-$(printf '%s\n' "$@" | cksum | cut --delimiter ' ' --fields 1)
    now=$(progress)
    read -r best count 2>/dev/null < "$counted" || true
    before=${best:-$now}
    if has_progress; then count=0 before=$now; fi
    starts=$((count + 1))
    if [ "$starts" -gt "${MAX_LOST:-3}" ]; then give_up; fi # SLURM killed this script in the last one
    echo "$before $starts" > "$counted"
}

give_up() {
    finish 1 "${MAX_LOST:-3} starts in a row ended without progress: see $LOGS"
}

requeue() { # TEXT: a step has begun
    if [ "$starts" -ge "${MAX_LOST:-3}" ] && ! has_progress; then give_up; fi
    put_back "$1"
}

put_back() { # TEXT
    local try next="the same command, given again,"
    if [ "${REQUEUE:-1}" = 0 ]; then
        if [ -n "${CHAIN:-}" ]; then next="the next job of the chain"; fi
        say "$1: $next continues"
        exit 75
    fi
    say "$1: requeue"
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
    rm -f "$counted"
    if [ -n "${CHAIN:-}" ]; then
        case "$SLURM_JOB_NAME" in
            *-"$CHAIN") # a name that no other job has
                scancel --state=PENDING --name="$SLURM_JOB_NAME" \
                    --user="${SLURM_JOB_USER:-$(id --user --name)}" || true ;;
            *) say "the rest of the chain stays in the queue: $SLURM_JOB_NAME may name other jobs too" ;;
        esac
    fi
    exit "$1"
}

complete() { finish 0 "complete"; }

start_step() { # FOLDER NODES RANKS WORD...: of srun; RANKS 0: the command alone, without torchrun
    local folder=$1 nodes=$2
    shift 2
    mkdir -p "$folder"
    rm -f "$folder/exit_status" "$folder"/ended-* # nothing of an earlier step is read
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0 \
        --wait="${WAIT_SECONDS:-300}" "${container[@]}" bash "$scripts/node.sh" "$folder" "$logs/stop" "$@" >&"$out" &
    step=$!
    wait_for_step "$folder" "$nodes"
    step=
}

wait_for_step() { # srun does not always see that the daemon of its step is gone: nodes leave a file
    local over='' ended
    srun_status=0
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
    wait "$step" || srun_status=$?
    say "srun has ended with $srun_status"
}

how_stopped() {
    if has_progress; then echo saved; else echo "stopped with nothing to save"; fi
}

status_of() { cat "$1/exit_status" 2>/dev/null || echo none; }

begin() { # WORD...: of the command; all but its first lines once a job
    local folder
    save=$(value_of --save "$@")
    output=$(output_of "$@")
    if [ -n "$logs" ]; then return; fi
    folder=${save:-$SLURM_JOB_NAME}
    LOGS=$(realpath --no-symlinks --canonicalize-missing "${LOGS:-${folder%/}-logs}") # mounts need a whole path
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # containers may have no scontrol
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
    export MASTER_ADDR MASTER_PORT
    folder=$LOGS/job-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
    mkdir -p "$folder"
    rm -f "$folder/stop"
    logs=$folder
    set_container
}

run() { # VERB WORD...: comes back where it is complete, and ends or requeues the job where not
    local nodes=$SLURM_JOB_NUM_NODES gpus=${GPUS_PER_NODE:-8} name=$1 folder status
    case "$1 ${2:-}" in
        "evaluate report" | prepare* | convert* | plan*) nodes=1 gpus=0 ;;
    esac
    case "$1 ${2:-}" in evaluate* | convert* | "prepare chat") name=$1-${2:-} ;; esac
    begin "$@"
    count_start "$@"
    num_steps=$((num_steps + 1))
    folder=$logs/$num_steps-$name
    say "start ${SLURM_RESTART_COUNT:-0} of $name on $nodes nodes of $gpus ranks; they meet at $MASTER_ADDR"

    case "$1" in pretrain | sft)
        if [ -n "$asked_to_stop" ]; then requeue "stopped before its dry run"; fi
        exec {out}> "$folder.yaml" # the resolved configuration
        WORLD_SIZE=$((nodes * gpus)) start_step "$folder-dry-run" 1 0 "$@" --dry-run
        exec {out}>&-
        out=1
        status=$(status_of "$folder-dry-run")
        if [ -n "$asked_to_stop" ]; then requeue "stopped in its dry run"; fi
        case "$status" in
            0) ;;
            2) finish 2 "bad input: the message stands above" ;;
            none) requeue "the dry run was lost" ;;
            *) finish "$status" "the dry run failed with $status: see above" ;;
        esac ;;
    esac

    if [ -n "$asked_to_stop" ]; then requeue "stopped before its first step"; fi
    start_step "$folder" "$nodes" "$gpus" "$@"
    status=$(status_of "$folder")
    say "the exit status of $name is $status; progress: $(progress)"
    case "$status" in
        0) rm -f "$counted" ;;
        75) requeue "$(how_stopped)" ;;
        2) finish 2 "bad input: the message stands above" ;;
        65 | 73 | 74) finish "$status" "a person has to look: see the end of $folder" ;;
        [0-9]*) finish "$status" "$name failed with $status: see above" ;;
        *)
            if [ -n "$asked_to_stop" ]; then requeue "$(how_stopped)"; fi
            requeue "the run was lost" ;;
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
    inside() { # COMMAND WORD...: looks, where the steps run, for what the script needs
        local looked=0
        LOGS=${LOGS:-$PWD} set_container
        srun --nodes=1 --ntasks=1 "${container[@]}" "$@" || looked=$?
        case "$looked" in
            0) ;;
            2) finish 2 "bad input: the messages stand above" ;;
            *) say "check_needs.sh did not run on the node (status $looked): the job continues without it" ;;
        esac
    }
    while_waiting() { # for a lock of steps.sh
        if [ -n "$asked_to_stop" ]; then put_back "stopped while it waited for another process"; fi
    }
    local script=$1
    shift
    if [ "${GPUS_PER_NODE:-0}" != 0 ]; then RANKS=${RANKS:-$GPUS_PER_NODE}; fi # the script's word for it
    # shellcheck disable=SC1090
    source "$script"
    complete
}

check_settings
