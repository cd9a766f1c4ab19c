"""Workers as jobs of Slurm: `python slurm.py 8` has eight of them, until Ctrl-C.

Edit what is written in capitals first. It runs the scheduler itself, so start it where compute
nodes can reach it and where it may stay for days: a login node, or a small job of its own. It
writes the scheduler's file; sweeps in other terminals, as many as you like, name that:

    . settings.sh
    python -m experiments.sweep --cluster /shared/podium/scheduler.json

`python slurm.py --script` prints the job as it would be submitted, and submits nothing.

Do not use `cluster.adapt()`: it counts calls that wait, and a sweep never has more calls out than
workers, so that Dask would stay at one worker for ever.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

SETTINGS = Path(__file__).resolve().with_name("settings.sh")
SCHEDULER_FILE = os.environ.get("SCHEDULER_FILE", "/shared/podium/scheduler.json")
QUEUE = "batch"
ACCOUNT = None  # of Slurm's accounting, where it asks for one
CORES = 1  # a worker's; the sweep's --threads
MEMORY = "4GB"  # 1 GB for TensorFlow, and what networks and rows take
WALLTIME = "08:00:00"  # a trial that it cuts off is tried again, from its checkpoint
GPU = False  # one GPU a job
PROTOCOL = None  # "tls://" with the certificates of settings.sh, which is read before this starts
INTERFACE = os.environ.get("INTERFACE")  # such as ib0; by default the host's own address
LOGS = os.environ.get("LOGS", "logs")
LOOK_S = 30.0

# As experiments/workers/cluster.py has them, and says why. A worker that Dask starts anew imports
# TensorFlow before it is back: 15 s, which is the default, would be too short.
DEFAULTS = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "1 hour",
    "DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "3 minutes",
}


# What a job is. Each has one worker: one process, with one thread for calls.
JOB = {
    "queue": QUEUE,
    "account": ACCOUNT,
    "walltime": WALLTIME,
    "cores": 1,
    "processes": 1,
    "job_cpu": CORES,
    "memory": MEMORY,
    "interface": INTERFACE,
    "protocol": PROTOCOL,
    "job_name": "podium-worker",
    "log_directory": LOGS,
    "local_directory": "$TMPDIR",
    "job_extra_directives": ["--gres=gpu:1"] if GPU else [],
    "job_script_prologue": [
        ": ${TMPDIR:=/tmp}",
        f". '{SETTINGS}'",
        "export DASK_DISTRIBUTED__ADMIN__TICK__LIMIT='1 hour'",
        "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False",
    ],
    # The last of two holds: of itself dask-jobqueue gives --memory-limit, at which Dask would kill.
    "worker_extra_args": [
        *("--memory-limit", "0"),
        "--no-dashboard",
        *("--preload", "experiments.trial"),
    ],
}


def write_script() -> str:
    from dask_jobqueue.slurm import SLURMJob

    return SLURMJob("tcp://SCHEDULER:8786", name="podium-worker-0", **JOB).job_script()


def open_slurm():
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from dask_jobqueue import SLURMCluster

    own = {"scheduler_file": SCHEDULER_FILE, "dashboard": False, "dashboard_address": ":0"}
    return SLURMCluster(scheduler_options=own, **JOB)


def main() -> None:
    asked = sys.argv[1:] or [""]
    if asked != ["--script"] and not asked[0].isdigit():
        sys.exit("python slurm.py NUMBER | --script")
    if asked == ["--script"]:
        print(write_script())
        return
    with open_slurm() as cluster:
        print(f"python -m experiments.sweep --cluster {SCHEDULER_FILE}", flush=True)
        try:
            while True:
                # Again and again: a job that is over (its walltime, its node) is submitted anew.
                cluster.scale(jobs=int(asked[0]))
                time.sleep(LOOK_S)
        except KeyboardInterrupt:
            print("ending the jobs", file=sys.stderr)


if __name__ == "__main__":
    main()
