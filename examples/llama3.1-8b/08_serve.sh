#!/usr/bin/env bash
# Step 8: serve the export with vLLM (ENGINE=llama.cpp: with llama.cpp), ask it, and compare what it answers
# with transformers on the same folder.
#
# time:   not run at full length; as long as the engine takes to start, and transformers to read the prompt
# memory: computed: keys and values of one row 128 GiB on all GPUs (1m), 256 (2m), 512 (4m), beside 16 GB of weights
# disk:   none with vLLM; 16.1 GB more for llama.cpp
# see:    an answer in JSON; "16 of 16 tokens" and a difference below the tolerance
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
needs 8

if (exec 3<> "/dev/tcp/127.0.0.1/$PORT") 2> /dev/null; then # it would be asked instead
    echo "$0: another program listens on port $PORT of this machine: end it, or name a free one with PORT=NUMBER" >&2
    exit 2
fi
exported=$WORK/Llama-3.1-8B-UltraLong-$TARGET
# of one row, on each of the GPUs that share its heads; a word of what it comes to on standard error
cache_bytes=$(python3 "$here/cache_bytes.py" "$exported" "$SEQ_LENGTH" "$SERVE_RANKS" "$SERVE_DTYPE")
case "$ENGINE" in
    vllm)
        # Chunks: the activations of a prompt do not grow with it.
        # shellcheck disable=SC2086 # flags are words
        vllm serve "$exported" --served-model-name ultralong --port "$PORT" \
            --tensor-parallel-size "$SERVE_RANKS" --max-model-len "$SEQ_LENGTH" --max-num-seqs 1 \
            --kv-cache-memory-bytes "$cache_bytes" --enable-chunked-prefill \
            --max-num-batched-tokens 8192 --dtype "$SERVE_DTYPE" $SERVE_FLAGS &
        ;;
    llama.cpp)
        # its flash attention rounds to float16, whatever the cache is in
        case "$SERVE_DTYPE" in float32) dtype=fp32 cache=f32 flash=off ;; *) dtype=bf16 cache=f16 flash=on ;; esac
        once "$exported-gguf" \
            ultralong convert export "$WORK/tuned-$TARGET" "$exported-gguf" --format gguf --dtype "$dtype"
        # No flag of the rotary embedding: the file has it.
        # shellcheck disable=SC2086
        llama-server --model "$exported-gguf/model.gguf" --alias ultralong --port "$PORT" \
            --ctx-size "$SEQ_LENGTH" --parallel 1 --n-gpu-layers 999 \
            --cache-type-k "$cache" --cache-type-v "$cache" --flash-attn "$flash" $SERVE_FLAGS &
        ;;
    *) echo "$0: ENGINE '$ENGINE' is not known; known: vllm, llama.cpp" >&2; exit 2 ;;
esac
server=$!
export no_proxy="127.0.0.1,${no_proxy:-}" NO_PROXY="127.0.0.1,${NO_PROXY:-}" # a cluster's proxy knows no server here
trap 'kill "$server" 2>/dev/null || true' EXIT
until curl --silent --fail "http://127.0.0.1:$PORT/health" > /dev/null; do
    kill -0 "$server" 2> /dev/null || {
        echo "$0: the server has ended before it could be asked: see above" >&2
        exit 1
    }
    sleep 1
done
curl --silent --fail "http://127.0.0.1:$PORT/v1/completions" --header 'Content-Type: application/json' \
    --data '{"model": "ultralong", "prompt": "def main(", "max_tokens": 16, "temperature": 0}'
echo
# A prompt beyond the original context: what misreads the rope block is off by 1.9 nats and more.
cat "$here"/../../docs/*.md | python3 "$here/check_answer.py" "$exported" "http://127.0.0.1:$PORT" \
    --prompt-tokens "$CHECK_TOKENS" --tolerance "$CHECK_TOLERANCE" --dtype "$SERVE_DTYPE"
if [ "$SERVE_SECONDS" = 0 ]; then wait "$server"; else sleep "$SERVE_SECONDS"; fi
