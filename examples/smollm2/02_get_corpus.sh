#!/usr/bin/env bash
# Step 2: long documents out of packages of the package index and of Debian (sources.py names them and their
# licences): manuals, code, books, licences, and two versions of one package behind each other. Four packages
# are held out whole. The conversations of step 6 and the questions of choices.sh are made here
# too: nothing later needs a network.
#
# see: corpus/corpus.json: licences, versions, bytes
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

# shellcheck disable=SC2086 # several words
corpus() {
    once "$WORK/corpus" python "$here/corpus.py" "$WORK/corpus" --packages "$CACHE/corpus" $CORPUS_FLAGS
    once "$WORK/conversations.jsonl" \
        python "$here/conversations.py" "$WORK/conversations.jsonl" --packages "$CACHE/corpus"
    [ ! -d "$CACHE/corpus/dict-gcide" ] || once "$WORK/choices.jsonl" \
        python "$here/choices.py" "$WORK/choices.jsonl" --packages "$CACHE/corpus"
}
[ -e "$WORK/corpus" ] || mkdir -p "$WORK" "$CACHE"
locked "$CACHE/corpus.lock" corpus
