"""The folder through which the parent and the workers speak to one another.

    parent.lock          locked by the parent for its life; so a worker sees that it is gone
    desired.json         what the workers shall load, and answer with
    workers/<pid>.json   what a worker has loaded and answers with; touched each second
    shadow/<pid>.json    what a worker saw of the challenger
    drift/<pid>.json     scores that the watcher gave in a worker
    watchers/            what was accepted of watchers
    releases/<version>.../  private, verified copies
    model/               the MLflow model folder that `mlflow models serve` is given
    metrics/             counters of the workers
    address.json         where the parent answers; it outlives one that was killed
    group.json           the server's process group; it outlives a parent that was killed
    seen.json, kept.json what was accepted, and is served: these outlive a restart

Each JSON file is replaced whole, so a reader finds the old or the new one, and a crash leaves no
half. Nothing here imports MLflow or TensorFlow.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

Role = Literal["champion", "challenger", "watcher"]
"""`champion` means the release of the alias that is served, whatever that alias is called;
`watcher` that of another model, a VAE, which scores what is answered."""
ROLES: Final[tuple[Role, ...]] = ("champion", "challenger", "watcher")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A release that each worker shall have loaded.

    It stands under a key that names one try of one release: what a worker could not load is tried
    anew under a new key, and a version number that was given twice is two releases.

    Attributes:
        folder: Its private, verified copy.
        scoring_sha256: Of its scoring runtime, for which its signature vouches.
    """

    version: int
    folder: str
    scoring_sha256: str


@dataclass(frozen=True, slots=True)
class Desired:
    """What the parent wants of every worker.

    Attributes:
        wanted: By key.
        champion: The key of what answers; None before the first.
        challenger: The key of the canary or the shadow; None where there is none.
        challenger_share: 0 to 1: of the requests that the challenger answers.
        shadow: Whether the challenger scores what the champion answers.
        watcher: The key of the VAE that scores what is answered; None where there is none.
    """

    wanted: dict[str, Wanted] = field(default_factory=dict)
    champion: str | None = None
    challenger: str | None = None
    challenger_share: float = 0.0
    shadow: bool = False
    watcher: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Desired:
        wanted = {key: Wanted(**one) for key, one in value["wanted"].items()}
        return cls(**{**value, "wanted": wanted})


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker says of itself.

    Attributes:
        serving: False while it starts.
        loaded: Seconds that loading took, by key of `Desired.wanted`.
        refused: Why a release could not be loaded, by key.
        champion: The version that it answers with.
    """

    pid: int
    serving: bool = False
    loaded: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    champion: int | None = None
    challenger: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Report:
        loaded, refused = dict(value["loaded"]), dict(value["refused"])
        return cls(**{**value, "loaded": loaded, "refused": refused})


class StateFolder:
    """Reads and writes the folder; one a served alias and port."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, home: Path, name: str, alias: str, port: int) -> StateFolder:
        """Returns the folder of a served alias; creates nothing."""
        return cls(home / "serving" / f"{quote(name, safe='')}@{alias}-{port}")

    @property
    def lock(self) -> Path:
        return self.path / "parent.lock"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics"

    @property
    def releases(self) -> Path:
        return self.path / "releases"

    @property
    def report(self) -> Path:
        """Where the evidence of a shadow run is left at the end."""
        return self.path / "replayed.json"

    @property
    def address(self) -> Path:
        return self.path / "address.json"

    @property
    def group(self) -> Path:
        return self.path / "group.json"

    @classmethod
    def find(cls, home: Path) -> list[StateFolder]:
        """Returns the folders of all that is, or was, served from a home; creates nothing."""
        return [cls(path.parent) for path in sorted(home.glob("serving/*/parent.lock"))]

    def create(self) -> None:
        """Makes the folder, for this user alone."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self.releases.mkdir(exist_ok=True)

    def clean(self) -> None:
        """Removes what workers of an earlier life left; needs the lock."""
        self.address.unlink(missing_ok=True)
        self.desired.unlink(missing_ok=True)
        mine = [self.path / name for name in ("workers", "shadow", "drift")]
        for folder in (*mine, self.metrics, self.model):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()

    @property
    def desired(self) -> Path:
        return self.path / "desired.json"

    def write_desired(self, desired: Desired) -> None:
        write_json(self.desired, desired.to_json())

    def read_desired(self) -> Desired:
        """Raises OSError or ValueError where there is none."""
        return Desired.from_json(json.loads(self.desired.read_bytes()))

    def write_report(self, report: Report) -> None:
        write_json(self.path / "workers" / f"{report.pid}.json", report.to_json())

    def touch_report(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            os.utime(self.path / "workers" / f"{pid}.json")

    def read_reports(self) -> dict[int, Report]:
        """Returns what workers say, by pid; they may be dead."""
        found = map(_read_report, (self.path / "workers").glob("[0-9]*.json"))
        return {report.pid: report for report in found if report is not None}

    def remove_report(self, pid: int) -> None:
        (self.path / "workers" / f"{pid}.json").unlink(missing_ok=True)

    def write_shadow(self, pid: int, value: Any) -> None:
        write_json(self.path / "shadow" / f"{pid}.json", value)

    def read_shadows(self) -> list[Any]:
        """Returns what each worker saw of the challenger; dead workers' too."""
        found = (read_json(path) for path in sorted((self.path / "shadow").glob("[0-9]*.json")))
        return [value for value in found if value is not None]

    def write_drift(self, pid: int, value: Any) -> None:
        write_json(self.path / "drift" / f"{pid}.json", value)

    def read_drifts(self) -> list[Any]:
        """Returns what the watcher scored in each worker; dead workers' too."""
        found = (read_json(path) for path in sorted((self.path / "drift").glob("[0-9]*.json")))
        return [value for value in found if value is not None]

    def keep_releases(self, folders: Iterable[Path], spare: int = 3) -> None:
        """Removes private copies: all but `folders` and the `spare` used last."""
        kept = {folder.name for folder in folders}
        with contextlib.suppress(OSError):  # what stays now goes the next time
            copies = [path for path in self.releases.iterdir() if path.name[0].isdigit()]
            others = [path for path in copies if path.name not in kept]
            others.sort(key=lambda path: path.stat().st_mtime)
            for path in others[: max(0, len(others) - spare)]:
                shutil.rmtree(path, ignore_errors=True)


def _read_report(path: Path) -> Report | None:
    try:
        return Report.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # a moment ago it was there; or a stranger's


def read_json(path: Path) -> Any:
    """Returns a JSON file's value; None where there is none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file that is the old or the new one for who reads it, at any time."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    partial.write_text(json.dumps(value), "utf-8")
    partial.replace(path)
