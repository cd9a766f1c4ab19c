#!/usr/bin/env bash
# Workers on this host, one trial at a time each: worker.sh tcp://SCHEDULER:8786 [NUMBER]
# Not more of them than cores, and 1 GB for each and what its network and rows take.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
scheduler=${1:?give the scheduler: worker.sh tcp://SCHEDULER:8786 [NUMBER]}
# A call that takes an hour is no fault, and Dask's profiler costs a fifth of a trial's time.
export DASK_DISTRIBUTED__ADMIN__TICK__LIMIT='1 hour'
export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False
exec dask worker "$scheduler" --nworkers "${2:-1}" --nthreads 1 --memory-limit 0 --no-dashboard \
  --local-directory "${TMPDIR:-/tmp}/dask-$(id -u)" --preload experiments.trial
