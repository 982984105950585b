#!/usr/bin/env bash
# Step 8: all figures on one page, with pictures and conditions.
#
# see: report-TARGET/index.html
set -euo pipefail
# shellcheck source=examples/smollm2/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

report_on "$WORK/results-$TARGET" "$WORK/report-$TARGET"
