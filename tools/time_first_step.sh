#!/usr/bin/env bash
# How long a user of Megatron-LM takes from a clone to a first CP 2 step in a script of their own: an
# environment with torch and Megatron-Core, `pip install -e .` beside them, and the command of
# docs/dropin.md, "A first step without a GPU". Everything in a folder that is removed again.
#
#   tools/time_first_step.sh [PYTHON [TORCH [MEGATRON_CORE]]]   # python3.12 2.13.0 0.19.2
set -euo pipefail
python=${1:-python3.12}
torch=${2:-2.13.0}
megatron_core=${3:-0.19.2}
repository=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

took() {  # took WHAT COMMAND...
    local start=$SECONDS
    "${@:2}" > log 2>&1 || { cat log; exit 1; }
    printf '%4d s  %s\n' $((SECONDS - start)) "$1"
}

first_step() {
    cd clone
    # The page's block of commands that has --mock-data.
    PYTHONPATH=. ../environment/bin/python - > ../commands <<'END'
from tests.docs.blocks import ROOT, blocks

print(next(b.text for b in blocks(ROOT / "docs/dropin.md") if "--mock-data" in b.text))
END
    PATH="$folder/environment/bin:$PATH" bash -euo pipefail ../commands
    cd ..
}

pip=("environment/bin/python" -m pip install)
took "their environment: python -m venv" "$python" -m venv environment
took "their environment: pip install torch==$torch megatron-core==$megatron_core" \
    "${pip[@]}" "torch==$torch" "megatron-core==$megatron_core"
took "git clone" git clone "$repository" clone
took "pip install -e ." "${pip[@]}" -e clone
took "three iterations over two ranks" first_step
grep -a 'iteration *[0-9]*/ *3 ' log
printf '%4d s  all\n' "$SECONDS"
