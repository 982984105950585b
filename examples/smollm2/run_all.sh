#!/usr/bin/env bash
# All steps to one target, one after the other: run_all.sh [--cpu] [128k|256k]. What a step has finished is
# kept, so that the same command continues after an interruption. What any step needs is looked for first.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bash "$scripts/check_needs.sh" "$@"
for script in "$scripts"/[0-9]*.sh; do
    echo "== $(basename "$script") $*, second $SECONDS"
    bash "$script" "$@"
done
echo "== done, second $SECONDS"
