#!/usr/bin/env bash
# The steps of both images, which need no Docker:
#
#   python3 -m venv image && PATH=$PWD/image/bin:$PATH docker/install.sh requirements package
#
# requirements: what the package needs, at the versions of requirements/constraints.txt; what the
#     environment has already (NVIDIA's torch, Transformer Engine, Apex) stays as it is.
# package: this project itself, then a look at what came out.
#
# TORCH_INDEX      index of torch, where it is not installed yet; empty: pip's own
# MEGATRON_CORE    version of Megatron-Core; empty: that of requirements/constraints.txt
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
before=$(mktemp)
trap 'rm -f "$before" "$before.constraints" "$before.requirements"' EXIT

requirements() {
    "$python" docker/constraints.py image > "$before"
    "$python" docker/constraints.py constraints "${MEGATRON_CORE:-}" > "$before.constraints"
    if [ -n "${TORCH_INDEX:-}" ]; then
        "$python" -m pip install --index-url "$TORCH_INDEX" --constraint "$before.constraints" torch
    fi
    # Docker keeps this layer while setup.py is the same: our code comes with the next step.
    "$python" docker/constraints.py requirements hf gguf benchmarks > "$before.requirements"
    "$python" -m pip install --constraint "$before.constraints" --requirement "$before.requirements"
    "$python" docker/constraints.py check "$before"
}

package() {
    "$python" -m pip install --no-deps .
    ultralong --version
    ultralong doctor --no-communication --no-gpus
}

[ $# -gt 0 ] || set -- requirements package
for step; do # before the first one runs: it takes minutes
    case "$step" in
        requirements | package) ;;
        *) echo "install.sh: step '$step' is not known; known: requirements, package" >&2; exit 2 ;;
    esac
done
for step; do "$step"; done
