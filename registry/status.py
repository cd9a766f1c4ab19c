"""python -m registry.status [NAME]: how the models stand, and the servers that serve them.

The registry, the ledger and the replicas are read at the same time as far as they can be; what does
not answer is said, and the rest is shown. Nothing is written.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import tyro

from mlops.errors import MlopsError, UsageError, choose, first_line
from mlops.program import answer, command_line, json_line, run_program
from mlops.settings import Settings

if TYPE_CHECKING:
    from registry.catalog import Catalog, Registered
    from registry.events import Event
    from registry.overview import Facts, Overview

EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One look.

    Attributes:
        notes: Sentences on what could not be read, and on a ledger that was changed.
        is_sound: False where registry and ledger disagree, or one of them could not be read.
    """

    at: datetime
    overview: Overview
    notes: tuple[str, ...]
    is_sound: bool


def look(
    settings: Settings, name: str | None = None, named: Sequence[str] = (), *, verify: bool = False
) -> Seen:
    """Returns how the models stand now, or the one of a name.

    Args:
        named: Addresses of replicas, besides those of the settings and of this home.
        verify: Whether what holds an alias is fetched, and its signature and bytes verified.

    Raises:
        UsageError: there is no such model; or an address is none.
    """
    from registry.overview import Facts, build_overview
    from registry.replicas import Asked, find_addresses

    asked = Asked(find_addresses(settings.home, [*settings.replicas, *named]))
    read = _Reading()
    events = read.ledger(settings)
    catalog, models = read.registry(settings, name)
    facts = Facts(models, events, asked.wait())
    if name is not None:
        _check_known(name, facts, catalog)
    overview = build_overview(facts, name=name)
    if verify and catalog is not None:
        overview = _verify(overview, catalog, settings)
    differs = any(one.differences for one in overview.models)
    return Seen(datetime.now(UTC), overview, tuple(read.notes), not (differs or read.is_wrong))


@dataclass
class _Reading:
    """Reads the stores, and keeps what is to be said of those that do not answer."""

    notes: list[str] = field(default_factory=list)
    is_wrong: bool = False

    def ledger(self, settings: Settings) -> list[Event] | None:
        from registry.ledger import NoLedgerError, open_ledger

        try:
            with open_ledger(settings.ledger_url, make=False) as ledger:
                breaks = ledger.check()
                if breaks:  # of a broken chain nothing is to be believed
                    self.is_wrong = True
                    self.notes.append(
                        f"The ledger is not as it was written, and is not shown: {breaks[0]}"
                    )
                    return None
                return ledger.events()
        except NoLedgerError:
            if _has_registry(settings):
                self.notes.append(
                    "There is no ledger where MLOPS_LEDGER_URL or the home says: since when, by "
                    "whom and what was decided is not known here."
                )
            return None
        except UsageError:
            raise
        except MlopsError as err:
            self.is_wrong = True
            self.notes.append(f"Without the ledger: {first_line(err)}")
            return None

    def registry(
        self, settings: Settings, name: str | None
    ) -> tuple[Catalog | None, dict[str, Registered] | None]:
        if not _has_registry(settings):
            return None, {}
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlops.mlflow_store import open_client
        from registry.catalog import Catalog

        try:
            catalog = Catalog(open_client(settings.direct_uri))
            return catalog, catalog.survey(name)
        except UsageError:
            raise
        except (
            Exception
        ) as err:  # a database that is damaged, say, of which MLflow lets all through
            said = str(err) if isinstance(err, MlopsError) else first_line(err)
            self.is_wrong = True
            self.notes.append(f"Without the registry, aliases as the ledger has them: {said}")
            return None, None


def _has_registry(settings: Settings) -> bool:
    """Tells whether there is a registry to open: an embedded one is made by what writes to it."""
    return not settings.embedded or (settings.home / "mlflow.db").is_file()


def _check_known(name: str, facts: Facts, catalog: Catalog | None) -> None:
    """Raises UsageError where neither registry, ledger nor replica knows the model."""
    from registry.overview import find_names

    known = set().union(*find_names(facts), (one.name for one in facts.replicas if one.name))
    if name in known or facts.models is None:
        return
    asked = facts.models.get(name)
    if asked is not None and asked.releases:  # of somebody who registers by hand
        return
    if catalog is not None:
        known = known.union(*find_names(dataclasses.replace(facts, models=catalog.survey())))
    if not known:
        raise UsageError(
            f"there is no model {name!r}; nothing was promoted yet. Run python -m "
            f"experiments.sweep, then python -m registry.promote {name}."
        )
    near = difflib.get_close_matches(name, sorted(known), n=5, cutoff=0.0)
    raise UsageError(f"there is no model {name!r}; {choose(name, near)}")


def _nothing() -> str:
    sweep = command_line("python", "-m", "experiments.sweep")
    promote = command_line("python", "-m", "registry.promote", "NAME")
    first = "No model was promoted here yet. Search, then promote what was found:"
    return f"{first}\n  {sweep}\n  {promote}"


def _verify(overview: Overview, catalog: Catalog, settings: Settings) -> Overview:
    models = [
        dataclasses.replace(
            model,
            aliases=tuple(
                one
                if one.version is None
                else dataclasses.replace(
                    one, verifies=_verify_one(catalog, model.name, one.version, settings)
                )
                for one in model.aliases
            ),
        )
        for model in overview.models
    ]
    return dataclasses.replace(overview, models=tuple(models))


def _verify_one(catalog: Catalog, name: str, version: int, settings: Settings) -> str:
    from registry.verify import verify_release

    try:
        verify_release(catalog, catalog.get_release(name, version), settings, ask=False)
    except MlopsError as err:
        return f"no: {first_line(err)}".rstrip(".")
    return "yes"


def to_json(seen: Seen) -> dict[str, Any]:
    """Returns all of a look as plain values, times in ISO 8601."""
    found: dict[str, Any] = _plain(dataclasses.asdict(seen.overview))
    for entry, model in zip(found["models"], seen.overview.models, strict=True):
        for one, alias in zip(entry["aliases"], model.aliases, strict=True):
            one["drift"] = alias.drift
            for told, replica in zip(one["replicas"], alias.replicas, strict=True):
                told["faults"] = list(replica.faults(alias.alias, alias.version))
    at = seen.at.isoformat(timespec="seconds")
    return {"at": at, **found, "notes": list(seen.notes), "sound": seen.is_sound}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime) else value


def as_text(seen: Seen, name: str | None, width: int | None) -> str:
    """Returns a look for people."""
    from registry import status_text

    if name is not None:
        return status_text.in_full(seen.overview.models[0], seen.notes, seen.overview.strays)
    text = status_text.as_text(seen.overview, width, seen.notes)
    if seen.overview.models or seen.overview.unpromoted or seen.notes:
        return text
    return "\n\n".join(filter(None, (_nothing(), text)))


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None
    """The model to show in full; by default all, a line an alias."""
    replica: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="URL")
    ] = ()
    """Metrics address of a server on another host, as http://HOST:5002; may be repeated."""
    watch: Annotated[float | None, tyro.conf.arg(metavar="[SECONDS]")] = None
    """Look again every so many seconds (5), until Ctrl-C."""
    verify: bool = False
    """Fetch what holds an alias, and verify its signature and bytes."""
    json: bool = False
    """Print the result as one JSON line; with --watch a line a look."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    if options.watch is not None and not 0.5 <= options.watch <= 86_400:
        raise UsageError(f"--watch must be from 0.5 to 86400 seconds, got {options.watch:g}.")
    settings = Settings.from_env()
    if options.watch is not None:
        return _watch(options, settings, options.watch)
    seen = look(settings, options.name, options.replica, verify=options.verify)
    _show(seen, options)
    return 0 if seen.is_sound else 1


def _show(seen: Seen, options: Options) -> None:
    if options.json:
        answer(json_line(to_json(seen)))
    else:
        answer(as_text(seen, options.name, _width()))


def _width() -> int | None:
    """Columns of the terminal; where there is none, of `COLUMNS`, if anybody says."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size().columns
    return None


def _watch(options: Options, settings: Settings, every_s: float) -> int:
    from registry.watching import can_redraw, watch

    def text() -> str:
        seen = look(settings, options.name, options.replica, verify=options.verify)
        if options.json:
            return json_line(to_json(seen))
        return f"{seen.at:%Y-%m-%d %H:%M:%S} UTC\n\n{as_text(seen, options.name, _width())}\n"

    return watch(text, every_s, in_place=not options.json and can_redraw())


def with_seconds(args: Sequence[str]) -> list[str]:
    """Returns the arguments with a number behind a bare --watch."""
    found: list[str] = []
    for place, one in enumerate(args):
        found.append(one)
        if one == "--watch" and not re.fullmatch(
            r"-?[0-9.]+", "".join(args[place + 1 : place + 2])
        ):
            found.append(f"{EVERY_S:g}")
    return found


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m registry.status",
        description="Show the champion and challenger of each model, and how their servers stand.",
        args=with_seconds(sys.argv[1:] if args is None else args),
    )


if __name__ == "__main__":
    sys.exit(main())
