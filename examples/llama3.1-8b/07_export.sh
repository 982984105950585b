#!/usr/bin/env bash
# Step 7: a Hugging Face folder that transformers and vLLM load, with the rope block of its training.
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

ultralong convert export "$WORK/tuned-$TARGET" "$WORK/Llama-3.1-8B-UltraLong-$TARGET"
ultralong convert verify "$WORK/tuned-$TARGET" "$WORK/Llama-3.1-8B-UltraLong-$TARGET"
