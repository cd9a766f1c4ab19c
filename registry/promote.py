"""python -m registry.promote NAME: the best candidate becomes the champion, if every gate passes.

The order of steps is what a crash may leave behind. Lease of the name -> candidate -> private
download -> structural check -> gates -> release run and version -> statement, signature, bytes ->
ledger: intent -> alias -> ledger: done -> note on the candidate -> hook. Killed before the alias
moves, the old champion serves on and the same command completes the release that was begun; killed
after, the same command writes what is missing.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mlops.errors import UsageError
from mlops.program import answer, answer_json, run_program, say
from mlops.settings import Settings

if TYPE_CHECKING:
    from registry.alias import Registry
    from registry.deciding import Promotion
    from registry.probe import Probed
    from registry.replayed import Replay


def promote(
    registry: Registry,
    name: str,
    version: int | None = None,
    alias: str = "champion",
    propose: bool = False,
    replayed: Path | None = None,
) -> Promotion:
    """Decides on a candidate of `name` and, if every gate passes, gives its release the alias.

    Args:
        registry: As `registry.alias.open_registry` gives it, with the policy that holds.
        name: The model, as in `digits-classifier`.
        version: The candidate to decide on. By default the one with the best validation score among
            those of the newest dataset and objective that are not decided on; one that scored no
            better in validation than a promoted one of the same two is passed over.
        alias: What a release is given that passes. Every candidate is compared with the champion.
        propose: Make the release, and leave the alias to `registry.approve`. A policy that asks
            for two accounts has this done always.
        replayed: What a server wrote about the candidate's release beside the champion, for the
            gate of that name. Without `version` it says which candidate it is about.

    Raises:
        LeaseHeldError: another process is changing the model; says who.
        UsageError: there is no such candidate, its run is deleted, or the alias is reserved.
        MlopsError: a store does not answer.
    """
    from registry.alias import changing, check_alias
    from registry.deciding import Deciding, choose_candidate
    from registry.hook import run_after_move
    from registry.signing import ensure_signing_key

    check_alias(alias)
    name = name.removesuffix("-candidates")
    replay = None if replayed is None else _open_replay(registry, name, alias, replayed)
    if replay is not None and version is None:
        version = _find_replayed(registry, replay)
    choose_candidate(registry.catalog.find_candidates(name), version)
    ensure_signing_key(registry.settings)
    with changing(registry, name, "promote"), tempfile.TemporaryDirectory(prefix="podium-") as own:
        candidate = choose_candidate(registry.catalog.find_candidates(name), version)
        deciding = Deciding(registry, name, alias, propose, Path(own), replay)
        done, moved = deciding.decide_on(candidate)
    if moved is not None:
        run_after_move(registry, moved)
    return done


def _open_replay(registry: Registry, name: str, alias: str, path: Path) -> Replay:
    """Reads a report that a gate of this decision asks for."""
    from registry.replayed import read_replay

    if registry.policy.replayed.on_failure == "off":
        raise UsageError(
            "--replayed is given, and the policy leaves the gate replayed off; set on_failure = "
            '"refuse" in [replayed] of the policy.'
        )
    if alias != "champion":
        raise UsageError(
            f"--replayed is given for the alias {alias}; a replay is asked for where a challenger "
            "becomes champion. Leave it out."
        )
    replay = read_replay(path)
    if replay.name != name:
        raise UsageError(
            f"{path} is a report about {replay.name[:80]!r}; expected one about {name}."
        )
    return replay


def _find_replayed(registry: Registry, replay: Replay) -> int:
    """Returns the candidate whose release a report is about; the gates look whether that is so."""
    release = registry.catalog.get_release(replay.name, replay.challenger.version)
    for candidate in registry.catalog.find_candidates(replay.name):
        if candidate.reference == release.candidate:
            return candidate.version
    raise UsageError(
        f"{replay.name} version {release.version} is of no candidate that is there; say which to "
        "decide on with --version."
    )


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    name: Annotated[str, tyro.conf.Positional]
    """The model to promote, for example digits-classifier."""
    version: int | None = None
    """The candidate to decide on; by default the best, if it is better in validation than those
    that were promoted."""
    alias: str = "champion"
    """The alias that the release is given."""
    policy: Path | None = None
    """What is demanded, as TOML; by default policy.toml in the home, else built-in limits."""
    propose: bool = False
    """Make the release, and leave the alias to python -m registry.approve."""
    replayed: Path | None = None
    """The report of python -m registry.serve NAME --shadow, for the gate replayed; without
    --version it says which candidate is decided on."""
    json: bool = False
    """Print the decision as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    from registry.actor import in_words
    from registry.alias import open_registry

    settings = Settings.from_env()
    with open_registry(settings, options.policy, probe=_probe_aloud) as registry:
        done = promote(
            *(registry, options.name, options.version, options.alias, options.propose),
            replayed=options.replayed,
        )
        who = in_words(registry.actor)
    for note in done.notes:
        say(note)
    if options.json:
        how = {}
        if done.decision == "promoted":
            how["serve"] = serve_command(done.name, done.alias, settings)
        answer_json(done.to_json() | how)
    else:
        answer(_in_words(done, settings, who, options.policy))
    return 3 if done.decision == "rejected" else 0


def _probe_aloud(folders: Sequence[Path], **asked: Any) -> Probed:
    from registry.probe import probe

    models = "the candidate" if len(folders) == 1 else "the champion and the candidate"
    say(f"asking {models} the test rows, in a process that first loads TensorFlow ...")
    return probe(folders, **asked)


def _in_words(done: Promotion, settings: Settings, who: str, policy: Path | None) -> str:
    from registry.gates import table

    if done.decision == "unchanged":
        return f"{done.name}: unchanged; {done.reason}."
    says = {"rejected": _say_rejected, "proposed": _say_proposed, "promoted": _say_promoted}
    first, *rest = says[done.decision](done, settings)
    warnings = [
        f"Warning: {one.name}: {one.reason}." for one in done.gates if one.verdict == "warn"
    ]
    by = f"Recorded as decided by {who}."
    again = _ask_again(done, policy)
    return "\n".join([first, "", table(done.gates), "", *warnings, by, *rest, *again])


def _ask_again(done: Promotion, policy: Path | None) -> list[str]:
    """Returns the commands that may meet the gate `reproduced`, where it is not met."""
    from mlops.program import command_line

    if all(one.verdict == "pass" for one in done.gates if one.name == "reproduced"):
        return []
    candidate = str(done.candidate_version)
    commands = [["experiments.reproduce", f"{done.name}-candidates/{candidate}"]]
    if done.decision == "rejected":
        more = [] if done.alias == "champion" else ["--alias", done.alias]
        more += [] if policy is None else ["--policy", str(policy)]
        commands += [["registry.promote", done.name, "--version", candidate, *more]]
    return ["Train it again:", *("  " + command_line("python", "-m", *one) for one in commands)]


def _say_rejected(done: Promotion, settings: Settings) -> list[str]:
    serving = (
        f"nothing holds {done.alias}"
        if done.version is None
        else f"version {done.version} stays {done.alias}"
    )
    return [
        f"{done.name}: candidate {done.candidate_version} is rejected, {serving}: {done.reason}."
    ]


def _say_proposed(done: Promotion, settings: Settings) -> list[str]:
    from mlops.program import command_line

    return [
        f"{done.name} version {done.version} is proposed as {done.alias}: candidate "
        f"{done.candidate_version}, {done.reason}.",
        "It waits for an approval:",
        "  " + command_line("python", "-m", "registry.approve", done.name, str(done.version)),
    ]


def _say_promoted(done: Promotion, settings: Settings) -> list[str]:
    return [
        f"{done.name} version {done.version} is {done.alias}: candidate {done.candidate_version}, "
        f"{done.reason}.",
        *serve_lines(done.name, done.alias, settings),
    ]


def serve_lines(name: str, alias: str, settings: Settings) -> list[str]:
    """Returns the two commands that serve what holds an alias, told to a person."""
    from mlops.program import command_line

    first, what = "Serve it, and whatever replaces it:", [f"{name}@{alias}"]
    if alias == "champion":
        what = [name]
    elif alias == "challenger":
        first, what = "Have it score beside the champion:", [name, "--shadow"]
    return [
        first,
        "  " + command_line("python", "-m", "registry.serve", *what),
        "Or this release alone, with stock MLflow:",
        "  " + serve_command(name, alias, settings),
    ]


def serve_command(name: str, alias: str, settings: Settings) -> str:
    """Returns the complete command that serves what holds an alias, with stock MLflow."""
    from mlops.program import command_line

    return command_line(
        "mlflow",
        *("models", "serve", "-m", f"models:/{name}@{alias}"),
        *("--env-manager", "local", "--port", "5001"),
        env={
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": settings.direct_uri,
        },
    )


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m registry.promote",
        description="Make the best candidate the champion, if every gate passes.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
