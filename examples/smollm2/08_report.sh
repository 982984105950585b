#!/usr/bin/env bash
# Step 8: all figures on one page, with pictures and conditions.
#
# see: report-TARGET/index.html
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

rm -rf "$WORK/report-$TARGET" # of the results that are there now
ultralong evaluate report "$WORK/results-$TARGET" --output "$WORK/report-$TARGET"
