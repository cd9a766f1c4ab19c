"""python -m mlops.erase --dataset FINGERPRINT: all that came from a dataset, gone for good.

Without `--yes` it only shows what there is. With it the order is what a kill leaves behind: the
ledger is told that an erasure begins; then the stores are gone through, lowest rank first, so that
nothing is left that refers to what is gone, and what is left is found again; then it is verified
that nothing is left; last comes a signed tombstone. Killed anywhere, the same command completes it.

Backups, copies on other machines, and the file that the data was read from are not reached.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from mlops.errors import MlopsError, UsageError
from mlops.program import answer, answer_json, command_line, run_program, say
from mlops.settings import Settings

if TYPE_CHECKING:
    from mlops.stores.store import Item, Store, Witness

SHORTEST = 12
"""Digits of a fingerprint that name it."""
N_SHOWN = 5


class HeldError(MlopsError):
    """An alias depends on what is to be erased; exit code 3."""

    exit_code: ClassVar[int] = 3


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did.

    Attributes:
        dataset: The fingerprint.
        items: What was found when it began, and is gone.
        tombstone: Where the ledger says so; None where there was nothing to erase.
        notes: What was looked at afterwards, and what a person must know besides.
    """

    dataset: str
    items: tuple[Item, ...]
    tombstone: str | None
    notes: tuple[str, ...] = ()


def find(settings: Settings, dataset: str) -> list[Item]:
    """Returns all that came from a dataset, by its fingerprint."""
    from mlops.stores.store import get_stores

    return [item for store in get_stores(settings) for item in store.find(dataset)]


def erase(settings: Settings, dataset: str, replace: Mapping[str, int] | None = None) -> Erased:
    """Erases all that came from a dataset, and has the ledger witness it.

    Args:
        settings: Where things live.
        dataset: The fingerprint.
        replace: The release that an alias goes to first, by NAME@ALIAS; 0 for none.

    Raises:
        HeldError: an alias depends on it; nothing was done.
        UsageError: `replace` does not fit; nothing was erased.
        MlopsError: something is in use, and nothing was done; or a store does not answer, or
            something is left: what is gone by then stays gone, and the same call goes on.
    """
    from mlops.stores.marker_search import collect_markers
    from mlops.stores.store import get_stores

    replace = replace or {}
    stores = get_stores(settings)
    witness = _get_witness(stores)
    items = [item for store in stores for item in store.find(dataset)]
    if not items and dataset not in witness.pending():
        return Erased(dataset, (), None)
    check_free(items, replace)
    markers = collect_markers(settings, dataset)
    if items:
        witness.begin(dataset, items, replace)
    for store in stores:
        say(f"{store.name} ...")
        store.erase(dataset, replace)
    notes = _verify(settings, stores, markers)
    return Erased(dataset, tuple(items), witness.attest(dataset, notes), tuple(notes))


def check_free(items: Sequence[Item], replace: Mapping[str, int]) -> None:
    """Refuses what is in use, and what an alias depends on that goes nowhere else.

    Raises:
        HeldError: names the aliases.
        MlopsError: says who uses it.
    """
    held = sorted({item.held_by for item in items if item.held_by is not None} - replace.keys())
    if held:
        options = " ".join(f"--replace {alias}=VERSION" for alias in held)
        raise HeldError(
            f"{', '.join(held)} depends on this dataset. Say which release of another dataset it "
            f"goes to, with {options}; VERSION none takes the alias away."
        )
    busy = list(dict.fromkeys(item.busy for item in items if item.busy is not None))
    if busy:
        raise MlopsError(" ".join(["nothing was erased:", *busy[:N_SHOWN]]))


def _get_witness(stores: Iterable[Store]) -> Witness:
    from mlops.stores.store import Witness

    for store in stores:
        if isinstance(store, Witness):
            return store
    raise MlopsError(
        "no store keeps a ledger, so nobody would witness an erasure; nothing was done."
    )


def _verify(settings: Settings, stores: Iterable[Store], markers: object) -> list[str]:
    """Returns what was looked at, a sentence each.

    Raises:
        MlopsError: something is left.
    """
    from mlops.stores.marker_search import Markers, search

    assert isinstance(markers, Markers)
    say("looking for what is left ...")
    again = [item for store in stores for item in store.find(markers.fingerprint)]
    if again:
        raise MlopsError(
            f"{len(again)} thing(s) are left, made meanwhile: "
            f"{', '.join(item.label for item in again[:N_SHOWN])}. Type the same command again."
        )
    left = search(settings, markers)
    if left.places:
        raise MlopsError(
            f"all that Podium knows of is gone, but {'; '.join(left.places[:N_SHOWN])}. Delete "
            "that, and type the same command again."
        )
    notes = [
        "no store finds anything of it",
        f"{left.n_files} files of {left.n_bytes} bytes hold neither its fingerprint nor any of "
        f"{len(markers.rows)} samples of its rows",
    ]
    if left.n_tables:
        notes.append(f"{left.n_tables} tables of database servers do not hold its fingerprint")
    return [*notes, *left.named]


def resolve(settings: Settings, text: str) -> str:
    """Returns the fingerprint that its first digits name.

    Raises:
        UsageError: it is too short, or names none or several of those that are known here.
    """
    from mlops.dataset_store import open_dataset_store
    from mlops.stores.store import get_stores

    if not re.fullmatch("[0-9a-f]{12,64}", text):
        raise UsageError(
            f"--dataset is no fingerprint; expected its first {SHORTEST} to 64 hex digits, got "
            f"{text!r}."
        )
    if len(text) == 64:
        return text
    stores = get_stores(settings)
    known = {key for store in stores for kind, key in store.needs() if kind == "dataset"}
    known |= {*open_dataset_store(settings).list(), *_get_witness(stores).pending()}
    found = sorted(one for one in known if one.startswith(text))
    if len(found) != 1:
        erased = command_line("python", "-m", "registry.history", text)
        none = f"none that is known here. Whether one was erased, this tells: {erased}"
        several = f"several: {', '.join(found[:N_SHOWN])}" if found else none
        raise UsageError(f"--dataset must begin one fingerprint; {text!r} begins {several}")
    return found[0]


def resolve_run(settings: Settings, run_id: str) -> str:
    """Returns the fingerprint of the dataset that a run used.

    Raises:
        UsageError: there is no such run, or it says no dataset.
    """
    from mlops.stores.tracking_rows import read_tracked

    tracked = read_tracked(settings)
    if run_id not in tracked.runs:
        raise UsageError(f"there is no run {run_id!r}; expected the id of a run in MLflow.")
    used = {dataset for one, dataset in tracked.used if one == run_id}
    used |= {tracked.runs[run_id].dataset} - {None}  # type: ignore[arg-type]
    if len(used) != 1:
        raise UsageError(f"the run {run_id!r} does not say which dataset it used; use --dataset.")
    return str(used.pop())


def read_replacements(texts: Iterable[str]) -> dict[str, int]:
    """Reads `NAME@ALIAS=VERSION`, where VERSION may be "none".

    Raises:
        UsageError: one is something else.
    """
    found = {}
    for text in texts:
        held, _, version = text.rpartition("=")
        if not re.fullmatch(r"[^@]+@[^@]+", held) or not re.fullmatch(
            r"[1-9]\d{0,8}|none", version
        ):
            raise UsageError(f"--replace takes NAME@ALIAS=VERSION, or =none; got {text!r}.")
        found[held] = 0 if version == "none" else int(version)
    return found


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    dataset: str | None = None
    """The dataset's fingerprint, or its first 12 digits or more."""
    run: str | None = None
    """Instead of it: the id of a run in MLflow, whose dataset it is."""
    replace: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """The release that an alias goes to first: NAME@ALIAS=VERSION, or =none to take it away."""
    yes: bool = False
    """Erase; without it, what there is is only shown."""
    json: bool = False
    """Print the result as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    replace = read_replacements(options.replace)
    if (options.dataset is None) == (options.run is None):
        raise UsageError("say which dataset, by --dataset FINGERPRINT or by --run ID; one of them.")
    settings = Settings.from_env()
    if options.run is not None:
        dataset = resolve_run(settings, options.run)
    else:
        dataset = resolve(settings, str(options.dataset))
    if not options.yes:
        _show(settings, dataset, replace, as_json=options.json)
        return 0
    done = erase(settings, dataset, replace)
    if options.json:
        _answer_json(done)
    else:
        answer(_in_words(done))
    return 0


def _show(settings: Settings, dataset: str, replace: Mapping[str, int], *, as_json: bool) -> None:
    items = find(settings, dataset)
    if as_json:
        _answer_json(Erased(dataset, tuple(items), None), erased=False)
        return
    if not items:
        answer(f"Nothing here came from the dataset {dataset}.")
        return
    answer("\n".join([f"From the dataset {dataset} came:", *_list(items)]))
    held = sorted({item.held_by for item in items if item.held_by is not None} - replace.keys())
    options = [
        word for alias, to in replace.items() for word in ("--replace", f"{alias}={to or 'none'}")
    ]
    options += [word for alias in held for word in ("--replace", f"{alias}=VERSION")]
    for sentence in dict.fromkeys(item.busy for item in items if item.busy is not None):
        say(f"In use: {sentence}")
    if held:
        say(f"{', '.join(held)} depends on it: say which release of another dataset it goes to.")
    say("Nothing was erased. To erase it, so that nothing but a backup brings it back, type:")
    say(f"  {command_line('python', '-m', 'mlops.erase', '--dataset', dataset, *options, '--yes')}")


def _list(items: Sequence[Item]) -> list[str]:
    from mlops.clean import shown_bytes

    lines = []
    for kind in dict.fromkeys(item.kind for item in items):
        some = [item for item in items if item.kind == kind]
        size = sum(item.size_bytes for item in some)
        lines.append(f"{kind}: {len(some)}" + (f", {shown_bytes(size)}" if size else ""))
        lines += [f"  {item.label}" for item in some]
    return lines


def _in_words(done: Erased) -> str:
    if done.tombstone is None:
        return f"Nothing here came from the dataset {done.dataset}; nothing was erased."
    return "\n".join(
        [
            f"The dataset {done.dataset} and all that came from it is erased:",
            *_list(done.items),
            "",
            *(f"Looked at: {note}." for note in done.notes),
            f"The tombstone is {done.tombstone}.",
            "Not reached: backups, copies on other machines (those that a server keeps, homes that "
            "shared these databases), and the file that the data was read from.",
        ]
    )


def _answer_json(done: Erased, *, erased: bool = True) -> None:
    from mlops.clean import to_json

    answer_json(
        {
            "dataset": done.dataset,
            "erased": erased and done.tombstone is not None,
            "items": to_json(done.items),
            "held_by": sorted({one.held_by for one in done.items if one.held_by is not None}),
            "tombstone": done.tombstone,
            "notes": list(done.notes),
        }
    )


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m mlops.erase",
        description="Show all that came from a dataset and, with --yes, erase it for good.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
