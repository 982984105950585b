#!/usr/bin/env bash
# Step 9: a Hugging Face folder that transformers and vLLM load, with the rope block of its training.
#
# see: "good_for": the engines that read it; every tensor bit-equal
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

exported=$WORK/SmolLM2-135M-Instruct-$TARGET
once "$exported" ultralong convert export "$WORK/tuned-$TARGET" "$exported"
ultralong convert verify "$WORK/tuned-$TARGET" "$exported"
