#!/usr/bin/env bash
# Step 8: serve the export with vLLM, and ask it one question.
#
# time:   not run; as long as vLLM takes to start
# memory: computed: keys and values of one row 128 GiB on all GPUs (1m), 256 (2m), 512 (4m), beside 16 GB of weights
# disk:   none
# see:    an answer in JSON
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

vllm serve "$WORK/Llama-3.1-8B-UltraLong-$TARGET" --served-model-name ultralong --port "$PORT" \
    --tensor-parallel-size "$RANKS" --max-model-len "$SEQ_LENGTH" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
until curl --silent --fail "http://127.0.0.1:$PORT/health" > /dev/null; do
    kill -0 "$server" # it is still there
    sleep 1
done
curl --silent --fail "http://127.0.0.1:$PORT/v1/completions" --header 'Content-Type: application/json' \
    --data '{"model": "ultralong", "prompt": "def main(", "max_tokens": 16, "temperature": 0}'
echo
if [ "$SERVE_SECONDS" = 0 ]; then wait "$server"; else sleep "$SERVE_SECONDS"; fi
