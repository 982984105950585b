#!/usr/bin/env bash
# Step 3: the weights as a Megatron checkpoint that any layout loads; read back and compared bit for bit.
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

ultralong convert import "$WORK/hf" "$WORK/base"
