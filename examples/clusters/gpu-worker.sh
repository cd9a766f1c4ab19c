#!/usr/bin/env bash
# One worker for each GPU of this host, by dask-cuda: gpu-worker.sh tcp://SCHEDULER:8786
# CUDA_VISIBLE_DEVICES=0,2 before it takes those two alone. What is installed first: see README.md.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
scheduler=${1:?give the scheduler: gpu-worker.sh tcp://SCHEDULER:8786}
export DASK_DISTRIBUTED__ADMIN__TICK__LIMIT='1 hour'
export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False
# Keras keeps the GPU's memory: no pool of RMM beside it, and nothing that spills.
exec dask cuda worker "$scheduler" --nthreads 1 --memory-limit 0 --device-memory-limit 0 --no-dashboard \
  --local-directory "${TMPDIR:-/tmp}/dask-$(id -u)" --preload experiments.trial
