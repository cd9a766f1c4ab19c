"""What child processes do in a registry, and where they are killed; forked, see tests/forked.py."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import model_signing
import model_signing.signing
import model_signing.verifying  # noqa: F401

from mlops.errors import MlopsError
from mlops.settings import Settings
from registry.alias import open_registry
from registry.approve import approve
from registry.failpoints import VARIABLE
from registry.promote import promote
from registry.rollback import rollback
from tests.forked import FORK
from tests.registry.sides import NAME, probe_sides

WORKS = {"promote": promote, "rollback": rollback, "approve": approve}
END_S = 120.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: killed at its failpoint, or with a result or an error."""

    exitcode: int | None
    result: dict[str, Any] | None
    error: tuple[str, str] | None


def start(home: Path, work: str, place: str | None = None, **asked: Any) -> tuple[Any, Path]:
    """Starts a process that does something to the model in a home; returns it, and its answer."""
    said = home / f"said-{os.urandom(8).hex()}"
    process = FORK.Process(target=_work, args=(str(home), work, place, asked, str(said)))
    process.start()
    return process, said


def end(process: Any, said: Path) -> Ended:
    process.join(END_S)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"a child has not ended in {END_S:.0f} s")
    with contextlib.suppress(FileNotFoundError):
        answer = json.loads(said.read_text())
        said.unlink()
        return Ended(process.exitcode, answer["result"], answer["error"])
    return Ended(process.exitcode, None, None)


def run(home: Path, work: str, place: str | None = None, **asked: Any) -> Ended:
    return end(*start(home, work, place, **asked))


def _work(home: str, work: str, place: str | None, asked: dict[str, Any], said: str) -> None:
    if place is not None:
        os.environ[VARIABLE] = place
    answer: dict[str, Any] = {"result": None, "error": None}
    try:
        with open_registry(Settings.from_env({"MLOPS_HOME": home}), probe=probe_sides) as registry:
            answer["result"] = asdict(WORKS[work](registry, NAME, **asked))  # type: ignore[operator]
    except Exception as err:
        answer["error"] = (
            type(err).__name__ if isinstance(err, MlopsError) else f"raw {type(err).__name__}",
            str(err),
        )
    Path(said).write_text(json.dumps(answer, default=str))
