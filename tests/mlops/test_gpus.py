"""Which GPUs there are, by a NVML and a nvidia-smi that are made up: no machine here has one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlops.gpus import Gpu, Gpus, choose_visible, list_gpus, parse_nvidia_smi

ROOT = Path(__file__).parents[2]


class NvmlError(Exception):
    """What pynvml raises."""


@dataclass(eq=False)
class Part:
    """A MIG instance."""

    uuid: str
    total: int = 10_000_000_000


@dataclass(eq=False)
class Card:
    """A card; it is in MIG mode where it has parts."""

    uuid: str
    total: int = 80_000_000_000
    parts: dict[int, Part] = field(default_factory=dict)
    knows_mig: bool = True
    lost: bool = False


class Nvml:
    """The functions of pynvml that tell which GPUs there are; text is bytes, as it once was."""

    NVMLError = NvmlError

    def __init__(self, *cards: Card) -> None:
        self.cards = cards

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        return self.cards[index]

    def nvmlDeviceGetUUID(self, handle: Card | Part) -> bytes:
        return handle.uuid.encode()

    def nvmlDeviceGetName(self, handle: Card | Part) -> bytes:
        return b"NVIDIA Made Up" if isinstance(handle, Card) else b"NVIDIA Made Up MIG 1g.10gb"

    def nvmlDeviceGetMemoryInfo(self, handle: Card | Part) -> Any:
        if isinstance(handle, Card) and handle.lost:
            raise NvmlError("GPU is lost")
        return SimpleNamespace(used=0, total=handle.total)

    def nvmlDeviceGetMigMode(self, handle: Card | Part) -> tuple[int, int]:
        if not isinstance(handle, Card) or not handle.knows_mig:
            raise NvmlError("not supported")
        return int(bool(handle.parts)), 0

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, index: int) -> Part:
        if index not in card.parts:
            raise NvmlError("not found")
        return card.parts[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Part:
        for card in self.cards:
            for part in card.parts.values():
                if part.uuid == uuid:
                    return part
        raise NvmlError("not found")

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, part: Part) -> Card:
        return next(card for card in self.cards if part in card.parts.values())

    def nvmlDeviceGetIndex(self, card: Card) -> int:
        return self.cards.index(card)


def uuids(nvml: Nvml, visible: str | None) -> list[str]:
    return [gpu.uuid for gpu in Gpus(nvml, visible).list()]


def test_a_gpu_is_told_with_number_name_and_memory() -> None:
    nvml = Nvml(Card("GPU-a", knows_mig=False), Card("GPU-b", total=24_000_000_000))
    assert Gpus(nvml, None).list() == (
        Gpu(0, "GPU-a", "NVIDIA Made Up", 80_000_000_000),
        Gpu(1, "GPU-b", "NVIDIA Made Up", 24_000_000_000),
    )


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, ["GPU-aa", "GPU-bb", "GPU-cc"]),
        ("", []),
        ("-1", []),
        ("2, 0", ["GPU-cc", "GPU-aa"]),
        ("1,1", ["GPU-bb"]),
        ("0,9,2", ["GPU-aa"]),
        ("GPU-b", ["GPU-bb"]),
        ("GPU-", []),
    ],
)
def test_nvml_and_nvidia_smi_are_both_read_as_cuda_would(
    visible: str | None, seen: list[str]
) -> None:
    nvml = Nvml(Card("GPU-aa"), Card("GPU-bb"), Card("GPU-cc"))
    assert uuids(nvml, visible) == seen
    every = Gpus(nvml, None).list()
    assert [gpu.uuid for gpu in choose_visible(every, visible)] == seen


def test_a_card_in_mig_mode_is_its_instances() -> None:
    split = Card("GPU-b", parts={0: Part("MIG-x"), 3: Part("MIG-y")})
    nvml = Nvml(Card("GPU-a"), split)
    assert uuids(nvml, None) == ["GPU-a", "MIG-x", "MIG-y"]
    assert uuids(nvml, "1") == ["MIG-x", "MIG-y"]
    assert Gpus(nvml, "MIG-y").list() == (
        Gpu(1, "MIG-y", "NVIDIA Made Up MIG 1g.10gb", 10_000_000_000),
    )
    assert uuids(nvml, "MIG-gone") == []


def test_a_card_that_cannot_be_read_is_left_out() -> None:
    assert uuids(Nvml(Card("GPU-a", lost=True), Card("GPU-b")), None) == ["GPU-b"]


def test_the_first_card_is_the_first_that_cuda_sees() -> None:
    nvml = Nvml(Card("GPU-a"), Card("GPU-b"))
    assert Gpus(nvml, "1,0").first == 1
    assert Gpus(nvml, "").first is None


def test_lines_of_nvidia_smi_that_say_no_memory_are_passed_over() -> None:
    text = "0, GPU-a, NVIDIA H100 80GB HBM3, 81559\n1, GPU-b, NVIDIA GB10, [N/A]\n\n"
    assert parse_nvidia_smi(text) == [Gpu(0, "GPU-a", "NVIDIA H100 80GB HBM3", 81559 * 2**20)]


def test_gpus_are_found_by_nvidia_smi_and_without_tensorflow(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "0, GPU-a, One, 1000"\necho "1, GPU-b, Two, 2000"\n')
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    (tmp_path / "pynvml.py").write_text("raise ImportError")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "PATH": f"{tmp_path}:/bin:/usr/bin"}
    code = (
        "import sys; from experiments.workers.packing import find_gpus; "
        "print([gpu.uuid for gpu in find_gpus('theano')[0]]); "
        "assert not {'tensorflow', 'keras', 'jax'} & set(sys.modules)"
    )
    for visible, seen in ((None, "['GPU-a', 'GPU-b']"), ("1", "['GPU-b']")):
        told = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**env, **told}, capture_output=True, text=True
        )
        assert done.stdout.strip() == seen, done.stderr


def test_this_machines_gpus_are_listed_whatever_there_is() -> None:
    assert all(isinstance(gpu, Gpu) for gpu in list_gpus())
