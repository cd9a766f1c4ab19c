"""Which NVIDIA GPUs there are and what they do now, without TensorFlow, JAX or CUDA.

NVML is asked; where it does not answer, `nvidia-smi` says which GPUs there are, and nothing is
measured. CUDA_VISIBLE_DEVICES counts as it does for CUDA: numbers are taken as NVML counts, by PCI
bus. CUDA does so too, unless the machine has cards of several kinds
and CUDA_DEVICE_ORDER is not PCI_BUS_ID.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MEGABYTE = 1_000_000
MEBIBYTE = 2**20
VISIBLE = "CUDA_VISIBLE_DEVICES"
QUERY = "--query-gpu=index,uuid,name,memory.total"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a process can be given to compute on: a card, or a MIG instance of one.

    Attributes:
        index: The card's number in nvidia-smi.
        uuid: What names it in CUDA_VISIBLE_DEVICES, "GPU-..." or "MIG-...".
        memory_bytes: All of its memory.
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int


class Gpus:
    """The GPUs that this process may compute on, read by NVML.

    What a driver does not support is left out without a word. Of a MIG instance (named by its UUID
    in CUDA_VISIBLE_DEVICES) that is the utilisation; its memory is the instance's. A card in MIG
    mode that is named by its number is read as a whole.

    Args:
        nvml: The module pynvml, or what has the same functions; initialised.
        visible: CUDA_VISIBLE_DEVICES; None where it is not set.
    """

    def __init__(self, nvml: Any, visible: str | None) -> None:
        self._nvml = nvml
        self._found = list(self._find(visible))
        self._handles: dict[int, Any] = {}
        for index, handle in self._found:
            self._handles.setdefault(index, handle)

    @property
    def first(self) -> int | None:
        """The number of the card that a network is trained on: TensorFlow and JAX take the first.

        None where this process may compute on none.
        """
        return next(iter(self._handles), None)

    def read(self) -> dict[str, float]:
        """Returns the metrics of all cards, by name."""
        metrics: dict[str, float] = {}
        for index, handle in self._handles.items():
            name = f"system/gpu_{index}"
            with contextlib.suppress(self._nvml.NVMLError):
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                metrics[f"{name}_memory_usage_megabytes"] = memory.used / MEGABYTE
                metrics[f"{name}_memory_usage_percentage"] = 100 * memory.used / memory.total
            with contextlib.suppress(self._nvml.NVMLError):
                rates = self._nvml.nvmlDeviceGetUtilizationRates(handle)
                metrics[f"{name}_utilization_percentage"] = float(rates.gpu)
            with contextlib.suppress(self._nvml.NVMLError):
                milliwatts = self._nvml.nvmlDeviceGetPowerUsage(handle)
                metrics[f"{name}_power_usage_watts"] = milliwatts / 1000
        return metrics

    def list(self) -> tuple[Gpu, ...]:
        """Returns what processes can be given, in CUDA's order; of a card in MIG mode its parts."""
        found: dict[str, Gpu] = {}
        for index, handle in self._found:
            with contextlib.suppress(self._nvml.NVMLError):
                for part in self._parts(handle) or (handle,):
                    gpu = self._describe(index, part)
                    found.setdefault(gpu.uuid, gpu)
        return tuple(found.values())

    def _describe(self, index: int, handle: Any) -> Gpu:
        nvml = self._nvml
        return Gpu(
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            name=_text(nvml.nvmlDeviceGetName(handle)),
            memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        )

    def _parts(self, card: Any) -> Sequence[Any]:
        """Returns a card's MIG instances; none where it has no such mode, or is one itself."""
        nvml, parts = self._nvml, []
        try:
            if not nvml.nvmlDeviceGetMigMode(card)[0]:
                return ()
            n_most = nvml.nvmlDeviceGetMaxMigDeviceCount(card)
        except nvml.NVMLError:
            return ()
        for i in range(n_most):
            with contextlib.suppress(nvml.NVMLError):  # no instance has this number
                parts.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, i))
        return parts

    def _find(self, visible: str | None) -> Iterator[tuple[int, Any]]:
        """Yields the number and the handle of each card, in CUDA's order.

        CUDA ignores what comes after the first entry that names no card.
        """
        nvml = self._nvml
        try:
            every = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in every]
            if visible is None:
                yield from enumerate(every)
                return
            for entry in (part.strip() for part in visible.split(",")):
                if entry.startswith("MIG-"):
                    instance = nvml.nvmlDeviceGetHandleByUUID(entry)
                    card = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)
                    yield nvml.nvmlDeviceGetIndex(card), instance
                    continue
                index = _find_entry(entry, uuids)
                if index is None:
                    return
                yield index, every[index]
        except nvml.NVMLError as err:
            _log.debug("NVML names no more cards: %s", err)


def list_gpus() -> tuple[Gpu, ...]:
    """Returns the GPUs that this process may use, in CUDA's order; () where there is none."""
    visible = os.environ.get(VISIBLE)
    nvml = _open_nvml()
    if nvml is not None:
        return Gpus(nvml, visible).list()
    return choose_visible(parse_nvidia_smi(_ask_nvidia_smi()), visible)


@functools.cache
def find_gpus() -> Gpus | None:
    """Returns what reads this process's GPUs; None without a driver or a card.

    Looked for once a process. NVML stays open until the process ends.
    """
    nvml = _open_nvml()
    return None if nvml is None else Gpus(nvml, os.environ.get(VISIBLE))


def choose_visible(gpus: Sequence[Gpu], visible: str | None) -> tuple[Gpu, ...]:
    """Returns those GPUs that a value of CUDA_VISIBLE_DEVICES names, in its order.

    Args:
        gpus: All of the machine, none of them a MIG instance.
        visible: None where it is not set.
    """
    if visible is None:
        return tuple(gpus)
    found: dict[str, Gpu] = {}
    for entry in visible.split(","):
        index = _find_entry(entry.strip(), [gpu.uuid for gpu in gpus])
        if index is None:
            break
        found.setdefault(gpus[index].uuid, gpus[index])
    return tuple(found.values())


def parse_nvidia_smi(text: str) -> list[Gpu]:
    """Returns the GPUs of `nvidia-smi --query-gpu=index,uuid,name,memory.total`, without units."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # a card whose memory is not told cannot be shared
            index, uuid, name, mebibytes = (part.strip() for part in line.split(","))
            found.append(Gpu(int(index), uuid, name, int(mebibytes) * MEBIBYTE))
    return found


def _find_entry(entry: str, uuids: Sequence[str]) -> int | None:
    """Returns which card an entry of CUDA_VISIBLE_DEVICES names; None if none, or several."""
    if entry.isdecimal():
        return int(entry) if int(entry) < len(uuids) else None
    # A UUID may be cut short, as long as it names one card.
    named = [i for i, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
    return named[0] if len(named) == 1 else None


@functools.cache
def _open_nvml() -> Any:
    """Returns pynvml, initialised; None where it cannot be."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return nvml
    except Exception as err:  # not installed, or no driver; whatever it is, a trial can do without
        _log.debug("no GPU is measured: %s", err)
        return None


def _ask_nvidia_smi() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, QUERY, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as err:
        _log.debug("nvidia-smi names no GPU: %s", err)
        return ""
    return done.stdout


def _text(value: Any) -> str:
    """Returns what NVML said as text: its older bindings say it in bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
