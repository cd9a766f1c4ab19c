"""GPUs in a sweep: shares, packings, memory that is not enough, hours. All on a CPU.

GPUs are made up; worker processes, studies, journals, the tracking server and errors for lack of
memory are real. Where trials train nothing, `Here` is the worker processes.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from experiments.config import SweepConfig
from experiments.kept_result import keep_result
from experiments.storage import open_storage
from experiments.sweep import main, run_sweep
from experiments.tasks import Training, TrialResult
from experiments.training import OnEpoch, Trained
from experiments.trial import Fitted, run_final, run_trial
from experiments.workers.cluster import WorkerDiedError
from experiments.workers.gpu_cluster import GpuCluster, open_gpu_cluster
from experiments.workers.gpu_share import (
    SHARE_VARIABLE,
    GpuMeter,
    JaxMemory,
    Share,
    TensorFlowMemory,
    find_share,
    is_out_of_memory,
    limit_tensorflow,
    open_memory,
    take_share,
    tell_workers,
)
from experiments.workers.packing import (
    AUTO_AFTER,
    CONTEXT_BYTES,
    Packing,
    check_gpus,
    choose_packing,
    find_gpus,
    first_packing,
)
from experiments.workers.sharing import Sharing
from mlops.errors import UsageError
from mlops.gpus import VISIBLE, Gpu
from mlops.mlflow_store import open_client
from mlops.settings import Settings
from mlops.system_metrics import SystemSummary
from tests.conftest import Tracking
from tests.experiments.bare_trials import describe_flat
from tests.experiments.test_study import Opener, complete, finish, opener  # noqa: F401
from tests.experiments.test_sweep import Notes, everything_in, runs_of
from tests.faults.zeros import write_network
from tests.share_worker import tell

GIB = 2**30
A, B = (Gpu(i, f"GPU-{name}", "NVIDIA Made Up", 24 * GIB) for i, name in enumerate("ab"))
SPACE = {"units": optuna.distributions.IntDistribution(1, 10**6)}
NO_MEMORY = TrialResult("failed", None, None, None, reason="out of memory", out_of_memory=2)
SUMMARY = SystemSummary(1, 0, 1.0, 100.0, None, None)


class CardsConfig(SweepConfig):
    """A config on a machine of 16 cores."""

    @property
    def n_cores(self) -> int:
        return 16


def on_16_cores(**fields: Any) -> SweepConfig:
    return CardsConfig(**fields)


# Which processes, on which GPU


@pytest.mark.parametrize(
    ("fields", "gpus", "trials_per_gpu", "n_workers"),
    [
        ({}, (A, B), 1, 2),
        ({"trials_per_gpu": "auto"}, (A, B), 1, 2),
        ({"trials_per_gpu": 3}, (A, B), 3, 6),
        ({"trials_per_gpu": 3, "workers": 4}, (A, B), 3, 4),
        ({"workers": 1}, (A, B), 1, 1),
        ({"workers": 3}, (A, B), 2, 3),
    ],
)
def test_a_gpu_has_one_process_or_as_many_as_asked_for(
    fields: dict[str, Any], gpus: tuple[Gpu, ...], trials_per_gpu: int, n_workers: int
) -> None:
    packing = first_packing(SweepConfig(**fields), gpus)
    assert packing == Packing(gpus, trials_per_gpu, n_workers)
    assert first_packing(SweepConfig(**fields), ()) is None


@pytest.mark.parametrize(
    ("peak_bytes", "gpus", "fields", "chosen"),
    [
        (2 * GIB, (A,), {}, 8),  # 24 / (2.2 + 0.5) = 8.9
        (20 * GIB, (A,), {}, 1),
        (30 * GIB, (A,), {}, 1),
        (0, (A,), {}, 16),  # the cores
        (0, (A, B), {}, 8),
        (0, (A,), {"threads": 4}, 4),
        (0, (A,), {"threads": 64}, 1),
        (0, (A, B), {"workers": 5}, 3),
        (2 * GIB, (A, dataclasses.replace(B, memory_bytes=6 * GIB)), {}, 2),
    ],
)
def test_as_many_trials_share_a_gpu_as_the_largest_peak_lets_fit(
    peak_bytes: int, gpus: tuple[Gpu, ...], fields: dict[str, Any], chosen: int
) -> None:
    assert choose_packing(on_16_cores(**fields), gpus, peak_bytes) == chosen
    for gpu in gpus if chosen > 1 else ():
        assert gpu.memory_bytes / chosen >= peak_bytes + CONTEXT_BYTES


def test_what_needs_a_gpu_is_refused_where_there_is_none_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(VISIBLE, "")  # whatever this machine has
    for typed in (["--trials-per-gpu", "2"], ["--budget-gpu-hours", "1.5"]):
        for extra in ([], ["--dry-run"]):
            assert main([*typed, *extra]) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and f"{typed[0]} needs a GPU on this machine" in said
    assert everything_in(tmp_path) == set()
    check_gpus(SweepConfig(budget_gpu_hours=1.0, cluster="tcp://HOST:8786"), ())
    check_gpus(SweepConfig(gpu_price=1.0), ())


def test_more_trials_than_a_gpu_can_hold_are_refused() -> None:
    check_gpus(SweepConfig(trials_per_gpu=32), (A,))
    with pytest.raises(UsageError, match=r"--trials-per-gpu 33 leaves a trial less than 268 MB"):
        check_gpus(SweepConfig(trials_per_gpu=33), (A,))


def test_a_gpu_that_the_backend_cannot_use_is_told_and_not_used() -> None:
    assert find_gpus("jax", lambda: ()) == ((), None)
    assert find_gpus("theano", lambda: [A]) == ((A,), None)
    found, why = find_gpus("jax", lambda: [A])  # no machine of this project has JAX for CUDA
    assert found == () and why is not None
    assert "there is a GPU (NVIDIA Made Up), but jax[cuda12] is not installed" in why
    with pytest.raises(UsageError, match=r"jax\[cuda12\] is not installed.* Leave it out"):
        check_gpus(SweepConfig(trials_per_gpu=2), found, why)


def test_each_process_takes_the_gpu_of_its_number_with_its_part_of_the_memory() -> None:
    told = tell_workers(Packing((A, B), 2, 4))
    uuids, fractions = [], set()
    for number in range(4):
        environ = {**told, "XLA_CLIENT_MEM_FRACTION": "0.9"}
        share = take_share(str(number), environ)
        assert share == find_share(environ)
        assert share is not None and share.cap_bytes == 12 * GIB - CONTEXT_BYTES
        uuids.append(environ[VISIBLE])
        fractions.add(environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
        assert environ["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
        assert environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
        assert "XLA_CLIENT_MEM_FRACTION" not in environ  # JAX refuses to be told twice
    assert uuids == ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]
    assert fractions == {"0.4792"}  # 11.5 of 24


def test_a_process_that_has_a_gpu_to_itself_has_no_cap() -> None:
    environ = tell_workers(Packing((A,), 1, 1))
    share = take_share(0, environ)
    assert share is not None and share.cap_bytes is None
    assert environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.95"
    own: dict[str, str] = {**tell_workers(Packing((A,), 1, 1)), "XLA_CLIENT_MEM_FRACTION": "0.5"}
    take_share(0, own)
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in own  # the user's word counts
    assert take_share(0, {}) is None


class TensorFlow:
    """What is used of tensorflow.config, on a machine with some GPUs."""

    def __init__(self, *devices: str) -> None:
        self.config = self
        self.experimental = self
        self.devices = list(devices)
        self.limits: dict[str, list[int]] = {}
        self.peak = 7 * GIB

    def list_physical_devices(self, kind: str) -> list[str]:
        assert kind == "GPU"
        return self.devices

    list_logical_devices = list_physical_devices

    def LogicalDeviceConfiguration(self, memory_limit: int) -> int:
        return memory_limit

    def set_logical_device_configuration(self, device: str, limits: list[int]) -> None:
        self.limits[device] = limits

    def reset_memory_stats(self, device: str) -> None:
        assert device == "GPU:0"
        self.peak = 0

    def get_memory_info(self, device: str) -> dict[str, int]:
        return {"current": 0, "peak": self.peak}


def test_tensorflow_is_given_the_cap_of_a_share_and_none_without_one() -> None:
    for share in (None, Share(), Share("GPU-a", 24 * GIB, 1)):
        tf = TensorFlow("gpu")
        limit_tensorflow(share, tf)
        assert tf.limits == {}
    limit_tensorflow(Share("GPU-a", 24 * GIB, 2), tf)
    assert tf.limits == {"gpu": [11776]}  # MiB
    limit_tensorflow(Share("GPU-a", 24 * GIB, 2), TensorFlow())


@pytest.fixture
def light_cluster(tmp_path: Path) -> Iterator[GpuCluster]:
    config = SweepConfig(trials_per_gpu=2)
    packing = first_packing(config, (A, B))
    assert packing is not None
    log = tmp_path / "workers.log"
    with open_gpu_cluster(config, packing, log, preload="tests.share_worker") as cluster:
        yield cluster


def ask_all(cluster: GpuCluster, n: int) -> dict[int, str]:
    """Returns which GPU each of so many processes has."""
    wait_for(lambda: cluster.n_alive() == n)
    found: dict[int, str] = {}
    while len(found) < n:  # Dask may give two calls to one of them
        tickets = [cluster.submit(tell, 0.5) for _ in range(n)]
        assert None not in [cluster.next_done(60.0) for _ in tickets]
        found |= {pid: said[VISIBLE] for pid, said in map(cluster.result, tickets)}
    assert len(found) == n
    return found


def test_processes_are_packed_anew_and_one_that_is_killed_comes_back_to_its_gpu(
    light_cluster: GpuCluster,
) -> None:
    first = ask_all(light_cluster, 4)
    assert Counter(first.values()) == {"GPU-a": 2, "GPU-b": 2}
    killed = next(pid for pid, uuid in first.items() if uuid == "GPU-b")
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: light_cluster.n_alive() == 3)
    second = ask_all(light_cluster, 4)
    assert Counter(second.values()) == {"GPU-a": 2, "GPU-b": 2}
    assert first.keys() - second.keys() == {killed}
    light_cluster.repack(1)
    assert light_cluster.packing == Packing((A, B), 1, 2)
    third = ask_all(light_cluster, 2)
    assert sorted(third.values()) == ["GPU-a", "GPU-b"] and not third.keys() & second.keys()


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What a trial used


def test_a_trial_counts_for_the_part_of_the_gpu_that_it_had() -> None:
    now = [100.0]
    share = Share("GPU-a", 24 * GIB, 4)
    tf = TensorFlow("gpu")
    meter = GpuMeter(
        2, share=lambda: share, memory=lambda: TensorFlowMemory(tf), clock=lambda: now[0]
    )
    assert tf.peak == 0  # an earlier trial's does not count
    now[0], tf.peak = 180.0, 3 * GIB
    use = meter.use(dataclasses.replace(SUMMARY, gpu_utilization_percentage=50.0))
    assert use is not None and use.gpu_s == 10.0
    assert use.metrics(price=3.6) == {
        "gpu_s": 10.0,
        "gpu_peak_memory_mb": pytest.approx(3221.2, abs=0.1),
        "gpu_utilization_percentage": 50.0,
        "cost": pytest.approx(0.01),
    }
    assert set(use.metrics(None)) == {"gpu_s", "gpu_peak_memory_mb", "gpu_utilization_percentage"}


def test_without_a_gpu_nothing_is_measured() -> None:
    meter = GpuMeter(share=lambda: None, memory=pytest.fail)
    assert meter.use(SUMMARY) is None
    assert meter.n_sharing == 1


def test_where_the_framework_does_not_know_the_peak_the_card_says_it_unless_it_is_shared() -> None:
    summary = dataclasses.replace(SUMMARY, gpu_peak_memory_mb=2000.0)

    def broken() -> Any:
        raise RuntimeError("no statistics")

    for memory in (lambda: None, broken):
        for n, peak in ((1, 2_000_000_000), (2, None)):
            share = Share("GPU-a", 24 * GIB, n)
            use = GpuMeter(share=lambda share=share: share, memory=memory).use(summary)
            assert use is not None and use.peak_bytes == peak


def test_the_memory_is_counted_by_the_framework_that_is_there() -> None:
    def keras(backend: str) -> Any:
        return SimpleNamespace(config=SimpleNamespace(backend=lambda: backend))

    def jax(platform: str) -> Any:
        device = SimpleNamespace(platform=platform, memory_stats=lambda: {"peak_bytes_in_use": 5})
        return SimpleNamespace(local_devices=lambda: [device])

    assert open_memory({}) is None
    assert open_memory({"keras": keras("tensorflow"), "tensorflow": TensorFlow()}) is None
    tf = open_memory({"keras": keras("tensorflow"), "tensorflow": TensorFlow("gpu")})
    assert isinstance(tf, TensorFlowMemory)
    assert open_memory({"keras": keras("jax"), "jax": jax("cpu")}) is None
    memory = open_memory({"keras": keras("jax"), "jax": jax("gpu")})
    assert isinstance(memory, JaxMemory) and memory.peak() == 5


def test_memory_that_is_not_enough_is_known_from_other_errors() -> None:
    import tensorflow as tf

    def raised(make: Callable[[], Any]) -> BaseException:
        with pytest.raises(Exception) as info:
            make()
        return info.value

    assert is_out_of_memory(raised(lambda: tf.zeros((2**45,))))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(raised(lambda: tf.reshape(tf.zeros(3), (2,))))
    assert not is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))
    anew = RuntimeError("what Keras makes of it")
    anew.__context__ = MemoryError()
    assert is_out_of_memory(anew)

    class XlaRuntimeError(RuntimeError):
        __module__ = "jaxlib._jax"

    assert is_out_of_memory(XlaRuntimeError("INTERNAL: CUBLAS_STATUS_ALLOC_FAILED"))
    assert not is_out_of_memory(XlaRuntimeError("INVALID_ARGUMENT: shapes"))


def test_jax_runs_out_of_memory_as_it_says() -> None:
    jnp = pytest.importorskip("jax.numpy")
    with pytest.raises(Exception, match="RESOURCE_EXHAUSTED") as info:
        jnp.zeros((2**45,)).block_until_ready()
    assert is_out_of_memory(info.value)


# The study


def test_a_trial_that_is_to_be_alone_is_so_for_every_later_driver(opener: Opener) -> None:  # noqa: F811
    search = opener(trials=2)
    first = search.ask()
    assert first is not None and not first.alone and not search.waits_alone
    assert search.tell_or_retry(first.number, NO_MEMORY)
    assert search.waits_alone and opener(trials=2).waits_alone
    search = opener(trials=2)
    again = search.ask()
    assert again is not None and again.alone
    assert (again.params, again.seed) == (first.params, first.seed)
    assert (again.origin, again.attempt) == (first.number, 2)
    assert not search.waits_alone
    search = opener(trials=2)  # its driver was killed
    search.recover()
    assert search.waits_alone
    third = search.ask()
    assert third is not None and third.alone and third.attempt == 2
    search.retry(third.number, "killed", charge=True)
    assert search.waits_alone
    tally = search.tally()
    assert (tally.n_complete, tally.n_failed) == (0, 0)


def test_one_that_ran_out_of_memory_when_its_driver_died_is_tried_again_alone(
    opener: Opener,  # noqa: F811
) -> None:
    search = opener(trials=2)
    ask = search.ask()
    assert ask is not None
    keep_result(search.study._storage, ask.trial_id, NO_MEMORY)
    later = opener(trials=2)
    assert later.recover() == [] and later.waits_alone
    again = later.ask()
    assert again is not None and (again.alone, again.params) == (True, ask.params)


def test_lack_of_memory_is_a_trials_outcome_and_does_not_end_a_study_soon(
    opener: Opener,  # noqa: F811
) -> None:
    search = opener(trials=5)
    alone = dataclasses.replace(NO_MEMORY, out_of_memory=1)
    for _ in range(9):
        ask = search.ask()
        assert ask is not None
        search.tell(ask.number, alone)
    assert search.gave_up is None and search.tally().n_failed == 9
    finish(search)
    ask = search.ask()
    assert ask is not None
    search.tell(ask.number, alone)
    assert search.gave_up == "10 trials ran out of memory"
    assert opener(trials=5).gave_up == search.gave_up
    assert opener(trials=6).gave_up is None


def test_gpu_time_and_peaks_are_kept_in_the_study(opener: Opener) -> None:  # noqa: F811
    search = opener(trials=9)
    results = [
        dataclasses.replace(complete(0.5), gpu_s=10.0, gpu_peak_bytes=3),
        TrialResult("pruned", 0.1, 0, "00", gpu_s=5.0, gpu_peak_bytes=7),
        TrialResult("failed", None, None, None, reason="it broke", gpu_s=1.0),
        dataclasses.replace(NO_MEMORY, gpu_s=2.0),
        complete(0.6),
    ]
    for result in results:
        ask = search.ask()
        assert ask is not None
        search.tell_or_retry(ask.number, result)
    ask = search.ask()
    assert ask is not None
    search.retry(ask.number, "killed", charge=True, gpu_s=0.5)
    assert search.gpu_s == 18.5 and search.gpu_peaks == (2, 7)
    assert opener(trials=9).gpu_s == 18.5 and opener(trials=9).gpu_peaks == (2, 7)


# The driver


DIED = "the worker died"


class Here:
    """The processes of a packing, which are this one; a trial runs when its end is waited for."""

    def __init__(self, packing: Packing, machine: Machine) -> None:
        self._packing = packing
        self._machine = machine
        self._queue: deque[tuple[int, Callable[..., Any], tuple[Any, ...]]] = deque()
        self._results: dict[int, Any] = {}

    def n_alive(self) -> int:
        return self._packing.n_workers

    def n_joining(self) -> int:
        return 0

    @property
    def has_own_homes(self) -> bool:
        return False

    def submit(self, call: Callable[..., Any], *args: Any) -> int:
        self._machine.n_sent += 1
        self._queue.append((self._machine.n_sent, call, args))
        assert len(self._queue) <= self._packing.n_workers
        return self._machine.n_sent

    def next_done(self, timeout_s: float) -> int | None:
        if not self._queue:
            return None
        ticket, call, args = self._queue.popleft()
        self._results[ticket] = self._machine.run(call, *args)
        return ticket

    def result(self, ticket: int) -> Any:
        found = self._results.pop(ticket)
        if isinstance(found, Exception):
            raise found
        return found

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return describe_flat(SPACE, {"units": 32})

    def end_silent(self, silent_s: float = 60.0) -> None:
        pass

    def kill(self) -> None:
        self._queue.clear()

    def end(self) -> None:
        assert not self._queue  # the GPUs are packed anew while nothing is out


class Machine:
    """A machine with GPUs; `fit` says what becomes of a trial, by its number and the packing.

    Attributes:
        packings: How many trials shared a GPU, one packing after another.
        ran: The names of the trainings, with how many shared the GPU.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        fit: Callable[[str, int], None] = lambda name, n_sharing: None,
        peak_bytes: Callable[[str], int | None] = lambda name: None,
        gpu_s: float = 60.0,
    ) -> None:
        self.packings: list[int] = []
        self.ran: list[tuple[str, int]] = []
        self.n_sent = 0
        self._monkeypatch = monkeypatch
        self._fit = fit
        self._peak_bytes = peak_bytes
        self._gpu_s = gpu_s

    @contextmanager
    def open(self, packing: Packing) -> Iterator[Here]:
        self.packings.append(packing.trials_per_gpu)
        environ = tell_workers(packing)
        take_share(0, environ)
        self._monkeypatch.setenv(SHARE_VARIABLE, environ[SHARE_VARIABLE])
        workers = Here(packing, self)
        yield workers
        workers.end()

    def run(self, call: Callable[..., Any], task: Any) -> Any:
        def fit(training: Training, on_epoch: OnEpoch, refit: bool) -> Fitted:
            name = training.name.removeprefix("flat-")
            self.ran.append((name, self.packings[-1]))
            self._fit(name, self.packings[-1])
            metrics = {"train_loss": 1.0, "val_accuracy": 0.5}
            on_epoch(0, metrics)
            return Fitted(Trained(None, (metrics,), 0, 0.5, False, "0" * 64), write_network)

        assert call in (run_trial, run_final)
        result = call(task, fit)
        peak_bytes = self._peak_bytes(task.training.name.removeprefix("flat-"))
        return dataclasses.replace(result, gpu_s=self._gpu_s, gpu_peak_bytes=peak_bytes)


def config_of(experiment: str, **fields: Any) -> SweepConfig:
    return on_16_cores(
        architectures=("nobody:Flat",),
        experiment=experiment,
        **{"trials": 6, "epochs": 1, "sampler": "random", "plots": "none"} | fields,
    )


def sweep(
    settings: Settings,
    machine: Machine,
    config: SweepConfig,
    gpus: tuple[Gpu, ...] = (A,),
    notes: Notes | None = None,
) -> Any:
    packing = first_packing(config, gpus)
    assert packing is not None
    cluster = GpuCluster(config, packing, machine.open)
    try:
        return run_sweep(
            config, settings=settings, cluster=cluster, progress=notes or Notes(), gpus=gpus
        )
    finally:
        cluster.close()


def trials_of(settings: Settings, result: Any) -> list[Any]:
    name = result.studies[0].study
    return optuna.load_study(study_name=name, storage=open_storage(settings.study_url)).trials


def children_of(tracking: Tracking, result: Any) -> dict[str, Any]:
    _, children = runs_of(open_client(tracking.url), result.sweep_id)
    return {run.data.tags["mlops.trial"]: run for run in children}


def hungry(*names: str, always: bool = False) -> Callable[[str, int], None]:
    """Runs out of memory in these trainings beside others, or always."""

    def fit(name: str, n_sharing: int) -> None:
        if name in names and (always or n_sharing > 1):
            raise MemoryError("too large")

    return fit


def test_a_trial_that_runs_out_of_memory_beside_others_is_tried_once_more_alone(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, notes = Machine(monkeypatch, hungry("00001", "00002")), Notes()
    config = config_of("shared", trials_per_gpu=3, gpu_price=1.0)
    result = sweep(tracking.settings, machine, config, notes=notes)
    assert machine.packings == [3, 1, 3]
    trials = trials_of(tracking.settings, result)
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 6, "FAIL": 2}
    reason = "out of memory with 3 trials on its GPU: MemoryError: too large"
    assert trials[1].user_attrs["reason"] == reason
    alone = [trial for trial in trials if trial.user_attrs.get("alone")]
    assert [trial.user_attrs["retry_of"] for trial in alone] == [1, 2]
    assert [trial.params for trial in alone] == [trials[1].params, trials[2].params]
    assert [(f"{trial.number:05d}", 1) for trial in alone] == machine.ran[4:6]
    assert any(f"flat-001: {reason}; it is tried again alone." in line for line in notes.lines)

    runs = children_of(tracking, result)
    assert runs["1"].info.status == "FAILED"
    assert runs["1"].data.tags["mlops.failure"] == reason
    again = runs[str(alone[0].number)]
    assert again.info.status == "FINISHED"
    assert (again.data.tags["mlops.alone"], again.data.tags["mlops.attempt"]) == ("true", "2")
    assert result.studies[0].n_failed == 0 and result.studies[0].candidate.version
    metrics = runs["0"].data.metrics
    assert {"gpu_s", "cost"} <= set(metrics)
    assert metrics["cost"] == pytest.approx(metrics["gpu_s"] / 3600)


def test_a_second_lack_of_memory_is_final_and_the_sweep_goes_on(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, notes = Machine(monkeypatch, hungry("00001", "00005", always=True)), Notes()
    result = sweep(tracking.settings, machine, config_of("twice", trials_per_gpu=4), notes=notes)
    trials = trials_of(tracking.settings, result)
    assert [trial.number for trial in trials if trial.state.name == "FAIL"] == [1, 5]
    assert trials[5].user_attrs["retry_of"] == 1
    assert trials[5].user_attrs["reason"] == "out of memory: MemoryError: too large"
    assert result.studies[0].n_complete == 6 and result.studies[0].n_failed == 1
    assert "flat-005 failed: out of memory: MemoryError: too large." in notes.lines
    assert machine.packings == [4, 1, 4]


def test_a_trial_that_runs_out_of_memory_alone_fails_at_once(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, hungry("00001", always=True))
    result = sweep(tracking.settings, machine, config_of("single"))
    trials = trials_of(tracking.settings, result)
    assert [trial.number for trial in trials if trial.state.name == "FAIL"] == [1]
    assert not any("retry_of" in trial.user_attrs for trial in trials)
    assert machine.packings == [1] and result.studies[0].n_complete == 6


def test_a_sweep_that_is_interrupted_tries_it_alone_when_it_goes_on(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(name: str, n_sharing: int) -> None:
        hungry("00000")(name, n_sharing)
        if name == "00001":
            os.kill(os.getpid(), signal.SIGINT)

    config = config_of("resumed", trials_per_gpu=2)
    first = sweep(tracking.settings, Machine(monkeypatch, fit), config)
    assert first.interrupted
    machine = Machine(monkeypatch)
    result = sweep(tracking.settings, machine, config)
    assert result.sweep_id == first.sweep_id and not result.interrupted
    assert machine.packings == [2, 1, 2]
    trials = trials_of(tracking.settings, result)
    (alone,) = [trial for trial in trials if trial.user_attrs.get("alone")]
    assert alone.state.name == "COMPLETE" and alone.user_attrs["origin"] == 0
    assert (f"{alone.number:05d}", 1) in machine.ran


def test_what_is_trained_after_the_search_is_tried_again_alone_too(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, hungry("seed-00", "seed-01"))
    config = config_of("finals", trials_per_gpu=2, trials=2, seeds=2)
    result = sweep(tracking.settings, machine, config)
    assert machine.packings == [2, 1]
    assert result.studies[0].seeds is not None and result.studies[0].seeds.n == 2


def test_auto_packs_by_the_largest_peak_of_the_first_trials_and_less_for_a_larger_one(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    def peak(name: str) -> int:
        return 6 * GIB if name == "00012" else (1 + int(name) % 2) * GIB

    machine, notes = Machine(monkeypatch, peak_bytes=peak), Notes()
    config = config_of("auto", trials_per_gpu="auto", trials=24)
    result = sweep(tracking.settings, machine, config, notes=notes)
    assert [n for _, n in machine.ran[: AUTO_AFTER + 1]] == [1] * AUTO_AFTER + [8]
    assert machine.packings == [1, 8, 3]  # 24 / (1.1 * 2 + 0.5), then 24 / (1.1 * 6 + 0.5)
    said = "from now on 8 trial(s) a GPU: the largest peak was 2,147 MB of 25,770 MB."
    assert said in notes.lines
    machine = Machine(monkeypatch, peak_bytes=peak)
    more = dataclasses.replace(config, trials=26, study=result.sweep_id)
    sweep(tracking.settings, machine, more)
    assert machine.packings == [1, 3]  # it is known from before


def test_a_budget_ends_the_search_and_the_same_command_with_a_larger_one_goes_on(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(name: str, n_sharing: int) -> None:
        if name == "00001":
            raise ValueError("it broke")

    notes = Notes()
    machine = Machine(monkeypatch, fit, gpu_s=1800.0)
    config = config_of("hours", budget_gpu_hours=1.5)
    first = sweep(tracking.settings, machine, config, notes=notes)
    assert len(machine.ran) == 3 and not first.interrupted
    assert first.studies[0].n_complete == 2 and first.studies[0].candidate.version
    assert sum("the budget of 1.5 GPU hours is used up (1.5)" in line for line in notes.lines) == 1

    machine = Machine(monkeypatch, fit, gpu_s=1800.0)
    same = sweep(tracking.settings, machine, config)
    assert machine.ran == [] and same.sweep_id == first.sweep_id
    larger = dataclasses.replace(config, budget_gpu_hours=2.5)
    second = sweep(tracking.settings, machine, larger)
    assert second.sweep_id == first.sweep_id and len(machine.ran) == 2
    without = dataclasses.replace(config, budget_gpu_hours=None)
    last = sweep(tracking.settings, machine, without)
    assert last.sweep_id == first.sweep_id and last.studies[0].n_complete == 6


def test_a_trial_whose_worker_dies_has_used_its_gpu_all_the_same(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch)

    def run(call: Callable[..., Any], task: Any) -> Any:
        """A process that dies tells nothing."""
        if task.training.name == "flat-00000":
            time.sleep(0.2)
            return WorkerDiedError(DIED)
        return Machine.run(machine, call, task)

    monkeypatch.setattr(machine, "run", run)
    config = config_of("died", trials=2, trials_per_gpu=2)
    trials = trials_of(tracking.settings, sweep(tracking.settings, machine, config))
    assert 0.1 <= trials[0].user_attrs["gpu_s"] < 5.0
    assert [trial.user_attrs.get("gpu_s") for trial in trials[1:]] == [60.0, 60.0]


def test_on_a_cpu_no_trial_has_a_gpus_metrics(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, "")
    config = config_of("none", gpu_price=1.0, trials=1, workers=1)
    machine = Machine(monkeypatch)
    machine.packings.append(1)
    workers: Any = Here(Packing((), 1, 1), machine)
    monkeypatch.setattr(machine, "run", lambda call, task: run_bare(call, task))
    result = run_sweep(config, settings=tracking.settings, cluster=workers, progress=Notes())
    (run,) = children_of(tracking, result).values()
    assert run.info.status == "FINISHED"
    assert not {name for name in run.data.metrics if "gpu" in name or name == "cost"}
    (trial,) = trials_of(tracking.settings, result)
    assert not {name for name in trial.user_attrs if "gpu" in name}


def run_bare(call: Callable[..., Any], task: Any) -> Any:
    def fit(training: Training, on_epoch: OnEpoch, refit: bool) -> Fitted:
        metrics = {"train_loss": 1.0, "val_accuracy": 0.5}
        on_epoch(0, metrics)
        return Fitted(Trained(None, (metrics,), 0, 0.5, False, "0" * 64), write_network)

    return call(task, fit)


def test_what_is_out_counts_for_the_budget_and_on_a_cpu_nothing_is_decided() -> None:
    now, notes = [0.0], Notes()
    machine = SimpleNamespace(gpu_s=1800.0, waits_alone=False, gpu_peaks=(0, 0))
    config = SweepConfig(budget_gpu_hours=1.0)
    packing = Packing((A,), 2, 2)

    @contextmanager
    def open_packed(packing: Packing) -> Iterator[Any]:
        yield None

    cluster = GpuCluster(config, packing, open_packed)
    sharing = Sharing(config, cluster, [machine], notes.note, lambda: now[0])  # type: ignore[list-item]
    sharing.begin("one")
    now[0] = 3599.0
    assert not sharing.is_spent()
    now[0] = 3600.0
    assert sharing.is_spent() and len(notes.lines) == 1
    assert sharing.end("one") == 1800.0
    assert not sharing.is_spent()

    bare: Any = object()
    on_cpu = Sharing(SweepConfig(), bare, [machine], notes.note)  # type: ignore[list-item]
    machine.waits_alone = True
    on_cpu.begin("one")
    assert on_cpu.may_send() and on_cpu.may_send_final() and not on_cpu.is_spent()
    assert on_cpu.end("one") is None


@pytest.mark.long
def test_a_sweep_with_real_processes_survives_networks_that_are_too_large(
    tracking: Tracking, tmp_path: Path
) -> None:
    config = SweepConfig(
        architectures=("tests.experiments.hungry:Hungry",),
        trials=3,
        epochs=1,
        sampler="grid",
        experiment="hungry",
        trials_per_gpu=2,
    )
    notes = Notes()
    result = run_sweep(config, settings=tracking.settings, progress=notes, gpus=(A,))
    outcomes = {}
    for trial in trials_of(tracking.settings, result):
        key = trial.params["appetite"], bool(trial.user_attrs.get("alone"))
        outcomes[key] = trial.state.name, trial.user_attrs.get("reason", "").partition(" {{")[0]
    beside = "out of memory with 2 trials on its GPU: ResourceExhaustedError:"
    assert outcomes == {
        ("none", False): ("COMPLETE", ""),
        ("shared", False): ("FAIL", beside),
        ("shared", True): ("COMPLETE", ""),
        ("always", False): ("FAIL", beside),
        ("always", True): ("FAIL", "out of memory: ResourceExhaustedError:"),
    }
    assert result.studies[0].best is not None and not result.interrupted
    runs = children_of(tracking, result).values()
    assert all(run.data.metrics["gpu_s"] > 0 for run in runs)
    assert "Starting 2 worker(s) on 1 GPU(s) (NVIDIA Made Up), 2 a GPU." in notes.lines[0]


@pytest.mark.long
def test_each_member_of_a_population_that_is_too_large_is_tried_again_in_one_that_is_alone(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    config = SweepConfig(
        architectures=("tests.experiments.hungry:Hungry",),
        trials=2,
        epochs=1,
        fix=("appetite=shared",),
        experiment="hungry-population",
        population=2,
        workers=2,
        trials_per_gpu=2,
    )
    result = run_sweep(config, settings=tracking.settings, progress=Notes(), gpus=(A,))
    trials = trials_of(tracking.settings, result)
    assert Counter(trial.state.name for trial in trials) == {"COMPLETE": 2, "FAIL": 2}
    failed = [trial.user_attrs for trial in trials if trial.state.name == "FAIL"]
    for attrs in failed:
        assert attrs["reason"].startswith("out of memory with 2 trials on its GPU")
        assert "RESOURCE_EXHAUSTED" in attrs["reason"]
    done = [trial.user_attrs for trial in trials if trial.state.name == "COMPLETE"]
    assert all(attrs["alone"] for attrs in done)
    assert {attrs["seed"] for attrs in done} == {attrs["seed"] for attrs in failed}
