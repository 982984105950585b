#!/usr/bin/env bash
# All steps to one target, one after the other: run_all.sh [--mock] [1m|2m|4m]. What a step has finished is
# kept, so that the same command continues after an interruption. What any step needs is looked for first.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NEEDED_STEPS="1 2 3 4 5 6 7 8" bash "$scripts/check_needs.sh" "$@"
for script in "$scripts"/0*.sh; do
    echo "== $(basename "$script") $*"
    bash "$script" "$@"
done
