#!/usr/bin/env bash
# Step 3: the weights as a Megatron checkpoint that any layout loads; read back and compared bit for bit.
#
# time:   measured: 31 s on 2 cores
# memory: measured: 1.3 GiB
# disk:   16.1 GB
# see:    "verified yes": every tensor bit-equal
set -euo pipefail
# shellcheck source=examples/llama3.1-8b/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
needs 3

once "$WORK/base" ultralong convert import "$WORK/hf" "$WORK/base"
