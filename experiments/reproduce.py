"""python -m experiments.reproduce TARGET: trains a run again; says whether it came out the same.

What a run says of itself is enough: its recipe, its dataset's fingerprint, its environment. The
training runs in a fresh process; what it finds is a certificate, which is laid beside the run.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mlops.errors import DataError, MlopsError, UsageError
from mlops.program import answer, answer_json, run_program, say
from mlops.settings import Settings

if TYPE_CHECKING:
    from experiments.reproducing.original import Original
    from experiments.reproducing.recipe import Recipe
    from experiments.reproducing.retraining import Retrained
    from registry.certificate import Certificate

SAY_EVERY_S = 10.0

Start = Callable[..., Generator[Any, None, None]]
"""As `registry.child.follow_child`."""


@dataclass(frozen=True, slots=True)
class Reproduced:
    """What a reproduction came to.

    Attributes:
        path: Of the certificate among the run's artifacts; None where it does not lie there.
        key: Id of the key that signed it; None where none did.
        changes: What differs between then and now: name, then, now.
    """

    certificate: Certificate
    path: str | None
    key: str | None
    changes: tuple[tuple[str, str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return {**self.certificate.to_json(), "path": self.path, "key": self.key}


def reproduce(
    text: str,
    settings: Settings,
    *,
    strict: bool = False,
    log: bool = True,
    threads: int | None = None,
    note: Callable[[str], None] = say,
    start: Start | None = None,
) -> Reproduced:
    """Trains again what a target names, in a process of its own, and compares.

    Args:
        text: As `experiments.reproducing.original.parse_target` reads it.
        strict: Train only where nothing differs from the environment of then.
        log: Lay the certificate beside the run.
        threads: To compute with, instead of those of then.
        note: Takes a line now and then.
        start: Starts `experiments.reproducing.retraining.retrain` and yields its lines; by default
            in a process of its own.

    Raises:
        UsageError: the target names no training that can be made again.
        DataError: its dataset is not in the store, or is damaged.
        MlopsError: a store does not answer, the training failed, or `strict` found a difference.
    """
    from experiments.reproducing.original import find_original, parse_target
    from mlops.mlflow_store import open_store_client
    from registry.actor import find_actor
    from registry.catalog import Catalog
    from registry.certificate import find_certificate_key, write_certificate
    from registry.child import follow_child
    from registry.signing import key_id, public_half

    target = parse_target(text)
    began = time.monotonic()
    client = open_store_client(settings)
    catalog = Catalog(client)
    with tempfile.TemporaryDirectory(prefix="podium-") as scratch:
        original = find_original(target, client, catalog, settings, Path(scratch))
        datasets = _check_dataset(original.recipe, settings)
        key = find_certificate_key(settings) if log else None
        actor = find_actor(settings)
        recipe = original.recipe if threads is None else replace(original.recipe, threads=threads)
        note(_introduce(original, recipe))
        retraining = _Retraining(original, recipe, datasets, Path(scratch), strict, note)
        retrained = retraining.run(start or follow_child)
        certificate = _certify(
            *(text, original, retrained, retraining, time.monotonic() - began),
            {"name": actor.name, "known_by": actor.known_by},
        )
    path = None
    if log:
        try:
            path = write_certificate(catalog, certificate, key)
        except MlopsError as err:  # hours may have gone into the verdict
            note(f"the certificate could not be laid beside the run: {err}")
    signed_by = None if path is None or key is None else key_id(public_half(key))
    return Reproduced(certificate, path, signed_by, tuple(retraining.changes))


def _check_dataset(recipe: Recipe, settings: Settings) -> Path:
    """Returns the folder where the dataset lies; fetches it from S3 where it must.

    Raises:
        DataError: it is not there, or its files are not those that were stored.
    """
    from mlops.dataset_store import open_dataset_store

    store = open_dataset_store(settings)
    store.get(recipe.dataset_fingerprint)
    damage = store.find_damage(recipe.dataset_fingerprint)
    if damage is not None:
        raise DataError(
            f"the stored dataset {recipe.dataset_fingerprint!r} was changed since ({damage}): "
            "training on it would reproduce nothing. Move it away, and sweep the data again to "
            "store it."
        )
    return store.folder


def _introduce(original: Original, recipe: Recipe) -> str:
    took = f"took {original.trained_s:.1f} s" if original.trained_s else "took a time not recorded"
    count = "1 thread" if recipe.threads == 1 else f"{recipe.threads} threads"
    beside = "" if recipe.population is None else f", in a population of {recipe.population}"
    return (
        f"Training {original.name} again (run {original.run_id}): {recipe.epochs} epochs on "
        f"{original.tags.get('mlops.dataset', 'the dataset')} "
        f"{recipe.dataset_fingerprint[:12]}, {recipe.backend} on {count}{beside}. "
        f"Its epochs {took} then; {recipe.backend} is imported first."
    )


class _Retraining:
    """One training in a child process, and what is said while it runs.

    Attributes:
        recorded: Recipe and environment of then, by name.
        found: The same of now.
        changes: Where they differ.
    """

    def __init__(
        self,
        original: Original,
        recipe: Recipe,
        datasets: Path,
        scratch: Path,
        strict: bool,
        note: Callable[[str], None],
    ) -> None:
        from experiments.reproducing.comparing import describe_run
        from experiments.reproducing.environment import read_environment

        self._recipe = recipe
        self._datasets = datasets
        self._strict = strict
        self._note = note
        self._environment = read_environment(original.tags)
        self.network = None if original.model is None else scratch / "retrained.keras"
        self.recorded = describe_run(original.recipe, self._environment)
        self.found: dict[str, str] = {}
        self.changes: list[tuple[str, str, str]] = []

    def run(self, start: Start) -> Retrained:
        from experiments.reproducing.retraining import Job, Retrained, retrain

        job = Job(self._recipe, str(self._datasets), str(self.network or ""))
        lines = start(retrain, job.to_json(), self._child_environment())
        last = 0.0
        with contextlib.closing(_translated(lines)) as told:  # Ctrl-C ends the child, too
            for line in told:
                if "environment" in line:
                    self._compare(line["environment"])
                    last = time.monotonic()
                elif "result" in line:
                    result = line["result"]
                    return Retrained(**{**result, "history": tuple(result["history"])})
                elif time.monotonic() - last > SAY_EVERY_S:
                    last = time.monotonic()
                    self._note(f"epoch {line['epoch'] + 1} of {self._recipe.epochs}")
        raise MlopsError("the process that trains ended without a result.")

    def _child_environment(self) -> dict[str, str]:
        from experiments.reproducing.environment import NO_GPU
        from mlops.gpus import VISIBLE

        # One that trained on the CPU is not made again on a GPU that came later.
        hidden = {VISIBLE: ""} if self._environment.get("GPU") == NO_GPU else {}
        return {"KERAS_BACKEND": self._recipe.backend, **hidden}

    def _compare(self, environment: dict[str, str]) -> None:
        """Says what differs between then and now, before anything is trained."""
        from experiments.reproducing.comparing import describe_run, find_changes

        self.found = describe_run(self._recipe, environment)
        self.changes = find_changes(self.recorded, self.found)
        if self.changes and self._strict:
            raise MlopsError(
                "nothing was trained, since --strict is given and this is not as it was then: "
                f"{_list_changes(self.changes)}."
            )
        if self.changes:
            self._note(f"Not as it was then: {_list_changes(self.changes)}.")


def _list_changes(changes: list[tuple[str, str, str]]) -> str:
    return ", ".join(f"{name} {then} -> {now}" for name, then, now in changes)


def _translated(lines: Generator[Any, None, None]) -> Generator[Any, None, None]:
    """Says of a child's death what it means here."""
    with contextlib.closing(lines) as told:
        try:
            yield from told
        except MlopsError as err:
            raise MlopsError(f"the training could not be made again: {err}.") from err


def _certify(
    target: str,
    original: Original,
    retrained: Retrained,
    retraining: _Retraining,
    seconds: float,
    actor: dict[str, str],
) -> Certificate:
    from registry.certificate import BOUND_FILES, Certificate
    from registry.releases import hash_files

    files = {} if original.model is None else hash_files(original.model)
    differences = tuple(_find_differences(original, retrained, retraining.network))
    return Certificate(
        target=target,
        run_id=original.run_id,
        verdict="differs" if differences else "identical",
        dataset_fingerprint=original.recipe.dataset_fingerprint,
        weights_recorded=original.weights_sha256,
        weights_found=retrained.weights_sha256,
        files={name: files[name] for name in BOUND_FILES if name in files},
        recorded=retraining.recorded,
        found=retraining.found,
        differences=differences,
        seconds=round(seconds, 3),
        created_at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        actor=actor,
    )


def _find_differences(
    original: Original, retrained: Retrained, network: Path | None
) -> Iterator[str]:
    """Yields a sentence for each thing that came out otherwise."""
    from experiments.reproducing.comparing import compare_metrics, compare_networks
    from experiments.reproducing.original import NETWORK

    was, now = original.weights_sha256, retrained.weights_sha256
    if was and was != now:
        yield f"weights were {was[:16]}, are {now[:16]}"
    if original.model is not None and network is not None:
        yield from compare_networks(original.model / NETWORK, network)
        yield from _compare_specification(original, retrained)
    if original.best_epoch is not None and original.best_epoch != retrained.best_epoch:
        yield f"the best epoch was {original.best_epoch}, is {retrained.best_epoch}"
    yield from compare_metrics(original.history, retrained.history)


def _compare_specification(original: Original, retrained: Retrained) -> Iterator[str]:
    """Looks whether the package says of its network what the training makes it."""
    from mlops.packaging import check_model_folder

    assert original.model is not None
    spec = check_model_folder(original.model).to_json()
    for name, value in retrained.spec.items():
        if spec[name] != value:
            yield f"the package says {name} {spec[name]}, the training {value}"


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    target: Annotated[str, tyro.conf.Positional]
    """NAME/VERSION, NAME@champion, NAME-candidates/VERSION, or the id of a trial's run."""
    strict: bool = False
    """Train only where hardware, versions and code are those of then."""
    threads: int | None = None
    """Compute with so many threads instead of those of then, to see what that changes."""
    no_log: bool = False
    """Lay no certificate beside the run."""
    json: bool = False
    """Print the certificate as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"--threads must be at least 1, got {options.threads}.")
    settings = Settings.from_env()
    done = reproduce(
        options.target,
        settings,
        strict=options.strict,
        log=not options.no_log,
        threads=options.threads,
    )
    if options.json:
        answer_json(done.to_json())
    else:
        answer(in_words(done))
    is_logged = options.no_log or done.path is not None
    return 0 if done.certificate.verdict == "identical" and is_logged else 1


def in_words(done: Reproduced) -> str:
    """Returns what a reproduction came to, for a person; the verdict is the first word."""
    one = done.certificate
    digits = one.weights_found[:16]
    lines = [f"{one.verdict}: {one.target}, trained again in {one.seconds:.1f} s, weights {digits}"]
    lines += [f"  {difference}" for difference in one.differences]
    if done.changes and one.verdict == "identical":
        names = ", ".join(name for name, _, _ in done.changes)
        lines.append(f"  although this is not as it was then: {names}")
    elif done.changes:
        lines += ["", *_table(done.changes)]
    elif one.verdict == "differs":
        lines.append("  nothing that the run says of its environment is different here")
    if done.path is not None:
        by = f"signed by key {done.key}" if done.key else "not signed: this host has no signing key"
        lines.append(f"Certificate: {done.path} of run {one.run_id}, {by}.")
    return "\n".join(lines)


def _table(changes: tuple[tuple[str, str, str], ...]) -> list[str]:
    rows = [("what", "then", "now"), *changes]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m experiments.reproduce",
        description="Train a release, a candidate or a run again, and compare the weights.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
