#!/usr/bin/env bash
# Step 7: a Hugging Face folder that transformers and vLLM load, with the rope block of its training.
#
# time:   measured: 24 s to write, 21 s to compare, on 2 cores
# memory: measured: 2.2 GiB
# disk:   16.1 GB
# see:    "good_for": the engines that read it; every tensor bit-equal
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
needs 7

exported=$WORK/Llama-3.1-8B-UltraLong-$TARGET
once "$exported" ultralong convert export "$WORK/tuned-$TARGET" "$exported"
ultralong convert verify "$WORK/tuned-$TARGET" "$exported"
