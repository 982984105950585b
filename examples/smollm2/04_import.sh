#!/usr/bin/env bash
# Step 4: the weights as a Megatron checkpoint, compared bit for bit and by their logits; exported again, they
# are the same file and write the same text.
#
# see: "verified yes"; "logits ... equal"; "the same weights, the same text"
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

[ -e "$WORK/base" ] || rm -f "$WORK/base.verified"
once "$WORK/base" ultralong convert import "$WORK/hf" "$WORK/base"
kept "$WORK/base.verified" || {
    ultralong convert verify "$WORK/hf" "$WORK/base" --logits --logits-seq-length "$VERIFY_LENGTH"
    touch "$WORK/base.verified"
}
once "$WORK/base-exported" ultralong convert export "$WORK/base" "$WORK/base-exported"
python "$here/same_model.py" "$WORK/hf" "$WORK/base-exported" --max-new-tokens "$ANSWER_TOKENS"
