#!/usr/bin/env bash
# The scheduler, on one host that driver and workers reach: scheduler.sh [PORT]
# It needs Podium's environment, no GPU, no home and 0.3 GB; it trains nothing.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
# A trial whose worker dies is the sweep's to try again, not Dask's.
export DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=0
export DASK_DISTRIBUTED__ADMIN__TICK__LIMIT='1 hour'
exec dask scheduler --port "${1:-8786}" --no-dashboard
