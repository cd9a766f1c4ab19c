from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlops.errors import TrackingError
from mlops.gpus import Gpus, find_gpus
from mlops.journal import Journal, read_records
from mlops.system_metrics import Machine, SystemMetrics
from mlops.tracking import Run


class Logged:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, dict[str, float]]] = []
        self.several = threading.Event()

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        self.samples.append((step, dict(values)))
        if len(self.samples) == 3:
            self.several.set()


@dataclass
class FakeMachine:
    """A machine of two cores and 8 GB, whose numbers a test sets."""

    busy_s: float = 100.0
    total_s: float = 1000.0
    own_s: float = 7.0
    resident: int = 300_000_000
    peak: int = 0
    broken: bool = False
    peaks_begun: int = 0

    def cpu_times(self) -> tuple[float, float]:
        return self.busy_s, self.total_s

    def memory(self) -> tuple[int, int]:
        if self.broken:
            raise OSError("/proc is not there")
        return 2_000_000_000, 8_000_000_000

    def process_cpu_s(self) -> float:
        return self.own_s

    def process_memory(self) -> int:
        return self.resident

    def begin_peak(self) -> None:
        self.peaks_begun += 1

    def peak_memory(self) -> int:
        return self.peak


class NvmlError(Exception):
    """What pynvml raises."""


@dataclass
class Card:
    uuid: str
    used: int = 10_000_000_000
    percent: int | None = 50
    watts: float | None = 300.0
    part_of: int | None = None


class FakeNvml:
    """The functions of pynvml, over cards; a MIG instance is a card that is part of another."""

    NVMLError = NvmlError

    def __init__(self, *cards: Card) -> None:
        self.cards = [card for card in cards if card.part_of is None]
        self.all = cards

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetUUID(self, card: Card) -> str:
        return card.uuid

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Card:
        for card in self.all:
            if card.uuid == uuid:
                return card
        raise NvmlError("not found")

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, card: Card) -> Card:
        assert card.part_of is not None
        return self.cards[card.part_of]

    def nvmlDeviceGetIndex(self, card: Card) -> int:
        return self.cards.index(card)

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:
        return SimpleNamespace(used=card.used, total=80_000_000_000)

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:
        if card.percent is None:
            raise NvmlError("not supported")
        return SimpleNamespace(gpu=card.percent, memory=1)

    def nvmlDeviceGetPowerUsage(self, card: Card) -> int:
        if card.watts is None:
            raise NvmlError("not supported")
        return int(1000 * card.watts)


def no_gpu() -> None:
    return None


def measured(
    machine: FakeMachine, gpus: Callable[[], Gpus | None] = no_gpu, now: list[float] | None = None
) -> tuple[SystemMetrics, Logged]:
    log = Logged()
    now = [0.0] if now is None else now
    return SystemMetrics(log, machine=machine, gpus=gpus, clock=lambda: now[0]), log


def names(gpus: Gpus) -> set[str]:
    return {name.removeprefix("system/").split("_", 2)[1] for name in gpus.read()}


def test_a_short_trial_has_one_sample_that_covers_all_of_it() -> None:
    machine, now = FakeMachine(), [50.0]
    system, log = measured(machine, now=now)
    with system:
        machine.busy_s += 1.5
        machine.total_s += 2.0
        machine.own_s += 1.25
        now[0] += 1.0
    assert log.samples == [
        (
            0,
            {
                "system/cpu_utilization_percentage": 75.0,
                "system/process_cpu_utilization_percentage": 125.0,
                "system/system_memory_usage_megabytes": 2000.0,
                "system/system_memory_usage_percentage": 25.0,
                "system/process_memory_usage_megabytes": 300.0,
            },
        )
    ]
    assert system.summary.cpu_s == 1.25
    assert system.summary.n_samples == 1


def test_what_the_process_did_before_the_block_does_not_count() -> None:
    machine = FakeMachine()
    system, _ = measured(machine)
    machine.own_s = 1000.0
    with system:
        machine.own_s += 0.5
    assert system.summary.cpu_s == 0.5


def test_no_cpu_figure_is_made_of_no_time() -> None:
    system, log = measured(FakeMachine())
    with system:
        pass
    assert not [name for name in log.samples[0][1] if "cpu" in name]


def test_counters_that_go_back_do_not_give_a_share_out_of_range() -> None:
    machine = FakeMachine()
    system, log = measured(machine)
    with system:
        machine.busy_s -= 5.0  # the kernel's idle counters may
        machine.total_s += 2.0
    assert log.samples[0][1]["system/cpu_utilization_percentage"] == 0.0


def test_samples_come_while_the_trial_runs_and_count_from_zero() -> None:
    log = Logged()
    with SystemMetrics(log, every_s=0.01, machine=FakeMachine(), gpus=no_gpu) as system:
        assert log.several.wait(30)
    steps = [step for step, _ in log.samples]
    assert steps == list(range(len(steps)))
    assert system.summary.n_samples == len(steps) >= 4


def test_nothing_is_sampled_after_the_block() -> None:
    log = Logged()
    with SystemMetrics(log, every_s=0.001, machine=FakeMachine(), gpus=no_gpu):
        pass
    n_samples = len(log.samples)
    time.sleep(0.05)
    assert len(log.samples) == n_samples
    assert not [one for one in threading.enumerate() if one.name == "system-metrics"]


def test_a_trial_that_fails_has_its_sample_and_its_own_error() -> None:
    system, log = measured(FakeMachine())
    with pytest.raises(ZeroDivisionError), system:
        raise ZeroDivisionError
    assert len(log.samples) == 1


def test_a_full_disk_loses_samples_and_never_the_trial(caplog: pytest.LogCaptureFixture) -> None:
    tried = threading.Event()
    n_tried = 0

    def log(values: Mapping[str, float], step: int) -> None:
        nonlocal n_tried
        assert step == 0  # no step is used up
        n_tried += 1
        if n_tried == 3:
            tried.set()
        raise TrackingError("the journal of this process cannot be written: no space")

    with SystemMetrics(log, every_s=0.01, machine=FakeMachine(), gpus=no_gpu) as system:
        assert tried.wait(30)
    assert (system.summary.n_samples, system.summary.n_lost) == (0, n_tried)
    assert [one.getMessage() for one in caplog.records] == [
        "system metrics of a trial are lost: the journal of this process cannot be written: "
        "no space"
    ]


def test_samples_go_on_when_the_disk_has_space_again() -> None:
    steps: list[int] = []

    def log(values: Mapping[str, float], step: int) -> None:
        if not steps:
            steps.append(-1)
            raise TrackingError("no space")
        steps.append(step)

    enough = threading.Event()
    with SystemMetrics(log, every_s=0.01, machine=FakeMachine(), gpus=no_gpu) as system:
        while len(steps) < 3 and not enough.wait(0.01):
            pass
    assert steps[:3] == [-1, 0, 1]
    assert system.summary.n_lost == 1


def test_a_machine_that_cannot_be_read_costs_the_sample_only() -> None:
    machine = FakeMachine()
    system, log = measured(machine)
    with system:
        machine.broken = True
    assert log.samples == []
    assert system.summary.n_lost == 1


def test_the_peak_is_what_the_kernel_says_or_the_largest_sample() -> None:
    machine = FakeMachine()
    system, _ = measured(machine)
    with system:
        assert machine.peaks_begun == 1
    assert system.summary.peak_memory_mb == 300.0
    machine.peak = 451_000_000
    system, _ = measured(machine)
    with system:
        pass
    assert system.summary.peak_memory_mb == 451.0


def test_cards_are_read_under_the_names_that_mlflow_has() -> None:
    nvml = FakeNvml(Card("GPU-a"), Card("GPU-b", used=40_000_000_000, percent=100, watts=None))
    assert Gpus(nvml, None).read() == {
        "system/gpu_0_memory_usage_megabytes": 10_000.0,
        "system/gpu_0_memory_usage_percentage": 12.5,
        "system/gpu_0_utilization_percentage": 50.0,
        "system/gpu_0_power_usage_watts": 300.0,
        "system/gpu_1_memory_usage_megabytes": 40_000.0,
        "system/gpu_1_memory_usage_percentage": 50.0,
        "system/gpu_1_utilization_percentage": 100.0,
    }


def test_the_summary_is_of_the_card_that_trains_the_first_that_cuda_sees() -> None:
    nvml = FakeNvml(Card("GPU-a"), Card("GPU-b", used=40_000_000_000, percent=100))
    system, log = measured(FakeMachine(), gpus=lambda: Gpus(nvml, "1,0"))
    with system:
        assert system.summary.gpu_peak_memory_mb is None
    assert "system/gpu_0_utilization_percentage" in log.samples[0][1]
    assert system.summary.gpu_peak_memory_mb == 40_000.0
    assert system.summary.gpu_utilization_percentage == 100.0


@pytest.mark.parametrize(
    ("visible", "cards"),
    [
        (None, {"0", "1", "2"}),
        ("", set()),
        ("-1", set()),
        ("1", {"1"}),
        ("2, 0", {"0", "2"}),
        ("0,-1,2", {"0"}),
        ("0,9,2", {"0"}),
        ("GPU-bb", {"1"}),
        ("GPU-b", {"1"}),
        ("GPU-", set()),
        ("GPU-nowhere,0", set()),
    ],
)
def test_only_cards_that_cuda_sees_are_read(visible: str | None, cards: set[str]) -> None:
    nvml = FakeNvml(Card("GPU-aa"), Card("GPU-bb"), Card("GPU-cc"))
    assert names(Gpus(nvml, visible)) == cards


def test_a_mig_instance_has_its_own_memory_and_no_utilisation() -> None:
    part = Card("MIG-x", used=5_000_000_000, percent=None, watts=None, part_of=1)
    nvml = FakeNvml(Card("GPU-a"), Card("GPU-b", percent=None), part)
    system, log = measured(FakeMachine(), gpus=lambda: Gpus(nvml, "MIG-x"))
    with system:
        pass
    assert {name: value for name, value in log.samples[0][1].items() if "gpu" in name} == {
        "system/gpu_1_memory_usage_megabytes": 5_000.0,
        "system/gpu_1_memory_usage_percentage": 6.25,
    }
    assert system.summary.gpu_utilization_percentage is None


def test_a_mig_instance_that_is_gone_is_no_card() -> None:
    assert Gpus(FakeNvml(Card("GPU-a")), "MIG-gone").read() == {}


def test_gpus_are_looked_for_once_a_process() -> None:
    assert find_gpus() is find_gpus()


def test_this_machine_is_read(tmp_path: Path) -> None:
    with Journal(tmp_path, "trial") as journal:
        run = Run(journal, "a" * 32)
        with SystemMetrics(run.log_metrics) as system:
            ends = time.process_time() + 0.2
            while time.process_time() < ends:
                pass
    (record,) = [one for one in read_records(journal.path) if one.kind == "metrics"]
    values = record.fields["values"]
    assert record.fields["step"] == 0
    assert 0 < values["system/cpu_utilization_percentage"] <= 100
    assert 0 < values["system/process_cpu_utilization_percentage"] <= 400
    assert 0 < values["system/system_memory_usage_percentage"] < 100
    assert 10 < values["system/process_memory_usage_megabytes"] < 100_000
    assert 0.2 <= system.summary.cpu_s < 2.0
    assert system.summary.peak_memory_mb >= values["system/process_memory_usage_megabytes"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's own count")
def test_the_peak_has_what_no_sample_saw_and_is_of_this_trial_alone() -> None:
    def use(size: int) -> None:
        bytearray(b"x") * size

    def peak_of(size: int) -> float:
        with SystemMetrics(Logged(), gpus=no_gpu) as system:
            use(size)
        return system.summary.peak_memory_mb

    resident_mb = Machine().process_memory() / 1e6
    large, small = peak_of(200_000_000), peak_of(1_000)
    assert large > resident_mb + 150
    assert small < large - 150
