"""python -m registry.serve NAME[@alias]: serves whatever release holds an alias.

It runs the unchanged `mlflow models serve` on a model that follows the alias: each release is
verified with this host's keys, loaded beside the one that answers, and swapped in without a failed
request. One that does not verify, load or answer as it did is refused, and the old one goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mlops.errors import MlopsError, UsageError, choose
from mlops.program import answer, answer_json, command_line, run_program, say
from mlops.settings import Settings

if TYPE_CHECKING:
    from registry.catalog import Catalog
    from registry.serving.follower import Accepted, Follower, Refusal
    from registry.serving.state import Role, StateFolder

CHALLENGER = "challenger"
NOBODY = "none"
"""Of --watch."""
WAIT_EVERY_S = 2.0
PATIENCE_S = 5.0
"""How long a port may be taken still after its holder was killed: its threads end one by one."""


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    name: Annotated[str, tyro.conf.Positional]
    """The model and its alias, for example digits-classifier or digits-classifier@champion."""
    host: str = "127.0.0.1"
    """Interface to listen on. There is no login: any but loopback opens it to others."""
    port: int = 5001
    """Port of /invocations."""
    workers: int = 1
    """Processes that answer; each has a copy of the model."""
    metrics_port: int | None = None
    """Port of /metrics, /model, /shadow and /drift; by default the next after --port."""
    interval_s: float = 2.0
    """Seconds between two looks at the registry, give or take a fifth."""
    challenger: str | None = None
    """Share of the requests that the alias challenger answers, as 10% or 0.1."""
    shadow: bool = False
    """Have the alias challenger score every request too; the champion answers."""
    watch: str = NOBODY
    """A promoted VAE that watches the rows for drift, as digits-vae or digits-vae@champion; auto is
    the VAE of the same experiment. Each worker holds it besides."""
    watch_rows_s: float = 50.0
    """Most rows a second that the watcher scores, a sample of all; it takes time from requests."""
    watch_window: int = 500
    """Rows of a window, which is compared with the watcher's own test rows."""
    max_batch: int = 64
    """Most rows of several requests in one forward pass."""
    max_wait_ms: float = 0.0
    """How long a request may wait for others to be batched with."""
    max_rows: int = 10_000
    """Most rows of one request."""
    max_queue: int = 256
    """Most requests that wait in a worker; more are answered with status 503."""
    timeout_s: int = 30
    """After so many seconds a request is answered with status 504."""
    drain_s: int = 30
    """Seconds that requests have to come to their end when the server is told to end."""
    wait: bool = False
    """Wait for the first release, and for the registry, instead of ending with an error."""
    json: bool = False
    """Print what is served as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    from registry.serving.followers import find_watched

    name, alias, share = _check(options)
    watched = None if options.watch == NOBODY else find_watched(options.watch, name)
    settings = Settings.from_env()
    if settings.embedded and not options.wait and not (settings.home / "mlflow.db").is_file():
        raise UsageError(
            f"there is no model {name!r}; nothing was promoted at {str(settings.home)!r} yet. "
            f"Run python -m registry.promote {name} first."
        )
    # Counters of this very process are no worker's.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlops.lease import try_lock
    from mlops.mlflow_store import open_store_client
    from registry.catalog import Catalog
    from registry.serving.follower import Follower
    from registry.serving.followers import Followers, WatcherFolder
    from registry.serving.group import end_left_behind
    from registry.serving.state import StateFolder

    catalog = Catalog(open_store_client(settings))
    folder = StateFolder.of(settings.home, name, alias, options.port)
    known = _find_known(catalog, name, alias, options.wait, has_copies=folder.path.is_dir())
    if watched is not None and known and not options.wait:
        _check_known(catalog, *watched)
    _check_ports(options, patience_s=PATIENCE_S if _end_left_behind(folder) else 0.0)
    if known is False and not folder.path.is_dir():
        raise MlopsError(
            "the registry does not answer, and no copy of a release is kept here. Try again when "
            "it does."
        )
    folder.create()
    lock = try_lock(folder.lock)
    if lock is None:
        raise UsageError(f"{name}@{alias} is served on port {options.port} already.")
    aliases: dict[Role, str] = {"champion": alias}
    if share is not None or options.shadow:
        aliases["challenger"] = CHALLENGER
    try:
        end_left_behind(folder)
        folder.clean()
        follower: Any = Follower(catalog, name, aliases, folder, settings.public_keys)
        if watched is not None:
            beside = WatcherFolder(folder, *watched)
            beside.create()
            watcher: dict[Role, str] = {"watcher": watched[1]}
            other = Follower(catalog, watched[0], watcher, beside, settings.public_keys)
            follower = Followers(follower, other)
        champion, rest = _find_first(follower, name, alias)
        return _serve(options, settings, folder, follower, champion, rest, share or 0.0, watched)
    finally:
        os.close(lock)


def _check(options: Options) -> tuple[str, str, float | None]:
    """Returns name, alias and the challenger's share; creates nothing."""
    from registry.alias import check_alias

    name, _, alias = options.name.partition("@")
    alias = check_alias(alias or "champion") if "@" in options.name else "champion"
    share = _share(options.challenger)
    if alias == CHALLENGER and (share is not None or options.shadow):
        raise UsageError(
            "the challenger cannot be compared with itself; serve another alias, or leave "
            "--challenger and --shadow out."
        )
    _check_numbers(options)
    _check_port_numbers(options)
    return name, alias, share


def _check_numbers(options: Options) -> None:
    for option, value, least in (
        ("workers", options.workers, 1),
        ("max-batch", options.max_batch, 1),
        ("max-rows", options.max_rows, 1),
        ("max-queue", options.max_queue, 1),
        ("timeout-s", options.timeout_s, 1),
        ("drain-s", options.drain_s, 0),
        ("watch-window", options.watch_window, 50),
    ):
        if value < least:
            raise UsageError(f"--{option} must be at least {least}, got {value}.")
    if not 0 <= options.max_wait_ms < 60_000:
        raise UsageError(f"--max-wait-ms must be from 0 to 60000, got {options.max_wait_ms}.")
    if not 0.1 <= options.watch_rows_s <= 1000:
        raise UsageError(f"--watch-rows-s must be from 0.1 to 1000, got {options.watch_rows_s}.")
    if not 0.05 <= options.interval_s <= 3600:
        raise UsageError(f"--interval-s must be from 0.05 to 3600, got {options.interval_s}.")


def _ports(options: Options) -> dict[str, int]:
    return {"port": options.port, "metrics-port": _metrics_port(options)}


def _check_port_numbers(options: Options) -> None:
    for option, port in _ports(options).items():
        if not 1 <= port <= 65535:
            raise UsageError(f"--{option} must be from 1 to 65535, got {port}.")
    if options.port == _metrics_port(options):
        raise UsageError(f"--port and --metrics-port are both {options.port}; expected two.")


def _end_left_behind(folder: StateFolder) -> bool:
    """Ends the server of a parent that was killed; True where there was one."""
    from mlops.lease import try_lock
    from registry.serving.group import end_left_behind

    lock = try_lock(folder.lock) if folder.lock.exists() else None
    if lock is None:
        return False
    try:
        was_there = end_left_behind(folder)
    finally:
        os.close(lock)
    if was_there:
        say("a server that was left behind by a killed one was ended.")
    return was_there


def _check_ports(options: Options, patience_s: float) -> None:
    from registry.serving.server import check_port

    deadline = time.monotonic() + patience_s
    for option, port in _ports(options).items():
        while (reason := check_port(options.host, port)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if reason is not None:
            raise UsageError(
                f"cannot listen on {options.host} port {port} ({reason}); expected a free port. "
                f"Name another with --{option}."
            )


def _metrics_port(options: Options) -> int:
    return options.port + 1 if options.metrics_port is None else options.metrics_port


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(
            f"--challenger is no share of the requests; expected 0% to 100%, or 0 to 1, "
            f"got {text!r}."
        )
    return share


def _check_known(catalog: Catalog, name: str, alias: str) -> None:
    """Raises UsageError where the registry knows no such model or alias.

    Raises:
        MlopsError: it does not answer.
    """
    aliases = catalog.find_aliases(name)
    if alias in aliases:
        return
    if not aliases and not catalog.find_releases(name):
        catalog.get_release(name, 1)  # says what there is
    hint = choose(alias, sorted(aliases)) if aliases else "none was set yet."
    raise UsageError(f"{name} has no alias {alias!r}; {hint}")


def _find_known(catalog: Catalog, name: str, alias: str, wait: bool, has_copies: bool) -> bool:
    """Returns whether the registry answers; raises where it knows no such model or alias.

    Args:
        wait: Waits instead until it knows it, and says what for. A login that may read releases
            alone is told nothing of a model that is not there yet.
        has_copies: Whether releases are kept here, so that a registry that does not answer need not
            be waited for.
    """
    said = ""
    while True:
        try:
            _check_known(catalog, name, alias)
        except MlopsError as err:
            is_answer = isinstance(err, UsageError)
            if is_answer and not wait:
                raise
            if not is_answer and (has_copies or not wait):
                say(f"the registry does not answer: {err}")
                return False
            if str(err) != said:
                said = str(err)
                say(f"waiting for {name}@{alias}: {said}")
            time.sleep(WAIT_EVERY_S)
        else:
            return True


def _find_first(follower: Follower, name: str, alias: str) -> tuple[Accepted, list[Any]]:
    """Returns what is served first, and what else the first look found.

    Raises:
        UnverifiedError: it may not be served.
        MlopsError: there is nothing to serve.
    """
    from registry.serving.follower import Accepted, Refusal
    from registry.signing import UnverifiedError

    news = follower.look()
    for one in news:
        if one.role == "champion":
            if isinstance(one, Refusal):
                raise UnverifiedError(f"{name}@{alias} version {one.version} {one.reason}")
            if isinstance(one, Accepted):
                return one, [other for other in news if other is not one]
    for kept in follower.find_kept():
        if kept.role == "champion":
            say(
                f"THE REGISTRY DOES NOT ANSWER: version {kept.version} is served, which was served "
                "before and verifies still; the alias may point elsewhere by now."
            )
            return kept, []
    raise MlopsError(
        "the registry does not answer, and no copy that verifies is kept here. Try again when it "
        "does."
    )


def _serve(
    options: Options,
    settings: Settings,
    folder: StateFolder,
    follower: Follower,
    champion: Accepted,
    rest: list[Any],
    share: float,
    watched: tuple[str, str] | None,
) -> int:
    from registry.serving.drifting import Drifting
    from registry.serving.metrics import Board, open_exposition
    from registry.serving.parent import Parent
    from registry.serving.rollout import Rollout
    from registry.serving.server import Server, Serving, write_model

    serving = Serving(
        host=options.host,
        port=options.port,
        workers=options.workers,
        timeout_s=options.timeout_s,
        drain_s=options.drain_s,
        max_rows=options.max_rows,
        max_batch=options.max_batch,
        max_wait_ms=options.max_wait_ms,
        max_queue=options.max_queue,
        watch_rows_s=0.0 if watched is None else options.watch_rows_s,
    )
    write_model(folder, serving)
    board = Board(folder.metrics)
    alias = follower.alias("champion")
    drifting = None
    if watched is not None:
        window, watches = options.watch_window, "@".join(watched)
        drifting = Drifting(folder, board.add_drift(), watches=watches, window_rows=window)
    parent = Parent(
        folder,
        follower,
        Rollout(folder, share, options.shadow),
        board,
        lambda: Server(folder, serving),
        lambda refusal: _note(
            settings, refusal, *_names_of(refusal, champion.name, alias, watched)
        ),
        workers=options.workers,
        interval_s=options.interval_s,
        shadow=options.shadow,
        share=share,
        drifting=drifting,
    )
    parent.tell(rest)
    pages = {"/metrics": board.text, "/model": parent.model, "/shadow": parent.shadow}
    pages["/drift"] = parent.drift
    with ExitStack() as until_exit:
        try:
            exposition = open_exposition(options.host, _metrics_port(options), pages)
        except OSError as err:
            raise UsageError(f"cannot serve metrics: {err}.") from err
        until_exit.callback(exposition.shutdown)
        _write_address(folder, champion.name, alias, options)
        until_exit.callback(folder.address.unlink, missing_ok=True)
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, lambda *_: parent.stop())
        return parent.run(champion, lambda first: _announce(options, alias, first))


def _names_of(
    refusal: Refusal, name: str, alias: str, watched: tuple[str, str] | None
) -> tuple[str, str]:
    """Returns the model and the alias that a refusal is about."""
    if refusal.role == "watcher" and watched is not None:
        return watched
    return name, alias if refusal.role == "champion" else CHALLENGER


def _note(settings: Settings, refusal: Refusal, name: str, alias: str) -> None:
    """Writes into the ledger that this host refused a release."""
    from registry.actor import find_actor
    from registry.ledger import open_ledger

    body = {
        "alias": alias,
        "reason": f"refused by a server: {refusal.reason}"[:1000],
    }
    with open_ledger(settings.ledger_url, make=False) as ledger:
        ledger.append("refused", name, refusal.version, find_actor(settings, ledger), body)


def _write_address(folder: StateFolder, name: str, alias: str, options: Options) -> None:
    """Says in the folder where this server answers, for `registry.status` on this host."""
    from mlops.supervisor import local_url
    from registry.serving.state import write_json

    metrics = local_url(options.host, _metrics_port(options))
    try:
        write_json(folder.address, {"name": name, "alias": alias, "metrics": metrics})
    except OSError as err:  # a full disk, say: it serves all the same
        say(f"registry.status will not find this server: {err}")


def _announce(options: Options, alias: str, first: Accepted) -> None:
    from mlops.supervisor import local_url

    url = local_url(options.host, options.port)
    beside = local_url(options.host, _metrics_port(options))
    is_watched = options.watch != NOBODY
    if options.json:
        answer_json(
            {
                "name": first.name,
                "alias": alias,
                "version": first.version,
                "url": url,
                "metrics_url": f"{beside}/metrics",
                "model_url": f"{beside}/model",
                "shadow_url": f"{beside}/shadow" if options.shadow else None,
                "drift_url": f"{beside}/drift" if is_watched else None,
                "workers": options.workers,
            }
        )
        return
    answer(
        f"{first.name}@{alias}, version {first.version}, answers at {url}/invocations "
        f"({options.workers} worker{'s' if options.workers > 1 else ''}).\n"
        f"What it takes, and which class is which: {beside}/model\n"
        f"Metrics: {beside}/metrics\n"
        + (f"How the challenger compares: {beside}/shadow\n" if options.shadow else "")
        + (f"How live rows compare with test rows: {beside}/drift\n" if is_watched else "")
        + f"Ask it: {_curl(url, first.folder)}\n"
        "Ctrl-C ends it."
    )


def _curl(url: str, folder: Path) -> str:
    """Returns a command that asks for a made-up row, as a person can type it."""
    import json

    from registry.golden import read_golden

    body = json.dumps({"inputs": read_golden(folder).requests[:1]})
    if len(body) > 2000:
        body = '{"inputs": ["<base64 of a row>"]}'
    return command_line(
        "curl", "-s", "-H", "content-type: application/json", "-d", body, f"{url}/invocations"
    )


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m registry.serve",
        description="Serve whatever release holds an alias, and follow it.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
