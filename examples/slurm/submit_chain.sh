#!/usr/bin/env bash
# Submit a job several times, each to begin when the one before has ended: for queues that do not
# requeue, or whose time limit is far below a run's. submit_chain.sh COUNT SBATCH_WORD...
#
#   bash examples/slurm/submit_chain.sh 6 --nodes 32 examples/slurm/ultralong.sbatch
#
# Jobs of one name run one at a time (--dependency=singleton). What is left of the chain when the run is
# complete, or needs a person, is taken out of the queue by the job that found it so.
set -euo pipefail
if (($# < 2)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: SAVE=RUN bash submit_chain.sh COUNT SBATCH_WORD... SCRIPT: COUNT is the number of jobs, such as 6" >&2
    exit 2
fi
count=$1
shift
: "${SAVE:?folder of the run: it names the chain}"
# Starts without progress are counted over the whole chain; no other jobs have a name with it.
CHAIN=$(date +%s)-$$-$RANDOM
export REQUEUE=0 CHAIN
for ((job = 1; job <= count; job++)); do
    sbatch --job-name "ultralong-$(basename "$SAVE")-$CHAIN" --dependency singleton --no-requeue "$@"
done
