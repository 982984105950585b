#!/usr/bin/env bash
# Short-context knowledge, after step 6: 500 questions with four choices in MMLU's schema, definitions out of a
# dictionary that the corpus has another part of. Asked by lm-evaluation-harness (pip install 'lm_eval>=0.4.13').
#
# see: accuracy of the original, extended and tuned model, with its error; guessing gives 25 %
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

[ -e "$WORK/choices.jsonl" ] || {
    echo "$WORK/choices.jsonl is not there: step 2 writes it where the corpus has Debian's dictionary dict-gcide," \
        "so neither with --cpu nor with --indexes pypi" >&2
    exit 1
}
WORK=$(cd "$WORK" && pwd)
cd "$WORK"
# shellcheck disable=SC2086 # several words
torchrun --standalone --nproc-per-node 1 -m megatron_ultralong evaluate harness \
    --load "before=$WORK/base" "after=$WORK/run-$TARGET" "tuned=$WORK/tuned-$TARGET" --tasks "$here/choices.yaml" \
    --limit "$CHOICES" --micro-batch-size "$CHOICES_BATCH" --output "$WORK/results-$TARGET/choices" $EVALUATE_FLAGS
