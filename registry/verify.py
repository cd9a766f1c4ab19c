"""python -m registry.verify NAME[@alias|/version]: is a release what was signed, and does it work?

Signature, statement, bytes and structure first; only what passes is loaded, in a child process,
and asked its golden requests.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mlops.errors import UsageError, choose
from mlops.program import answer, answer_json, run_program

if TYPE_CHECKING:
    from mlops.settings import Settings
    from registry.catalog import Catalog, Release
    from registry.releases import Verified


def find_release(catalog: Catalog, what: str) -> Release:
    """Returns the release that `NAME`, `NAME@alias` or `NAME/version` names.

    Raises:
        UsageError: there is none; names those that there are.
    """
    name, at, alias = what.partition("@")
    name, slash, version = name.partition("/")
    if not name or (slash and (at or not version.isdecimal())):
        raise UsageError(f"{what!r} names no release; expected NAME, NAME@alias or NAME/version.")
    if slash:
        return catalog.get_release(name, int(version))
    alias = alias if at else "champion"
    release = catalog.find_alias(name, alias) if alias else None
    if release is None:
        aliases = catalog.find_aliases(name)
        newest = next(iter(catalog.find_releases(name)), None)
        if newest is None:
            catalog.get_release(name, 1)
        known = f"; {choose(alias, sorted(aliases))}" if aliases else "; no alias is set."
        raise UsageError(f"{name} has no alias {alias!r}{known}")
    return release


def verify_release(
    catalog: Catalog, release: Release, settings: Settings, *, ask: bool = True
) -> Verified:
    """Verifies a release, in a private copy that is gone afterwards.

    Args:
        ask: Whether it is loaded, too, and asked its golden requests.

    Raises:
        UnverifiedError: it is not what was signed.
        ModelFailedError: it does not answer as it did.
        UsageError: a public key is missing.
    """
    from registry.probe import probe_golden
    from registry.releases import fetch_release

    with tempfile.TemporaryDirectory(prefix="podium-") as private:
        verified = fetch_release(catalog, release, Path(private), settings.public_keys)
        if ask:
            probe_golden(verified.folder, vouched_scoring=verified.scoring_sha256)
    return verified


@dataclass(frozen=True)
class Options:
    """Options of the program."""

    what: Annotated[str, tyro.conf.Positional]
    """NAME, NAME@alias or NAME/version; of a NAME alone the champion."""
    json: bool = False
    """Print the answer as one JSON line."""
    debug: bool = False
    """Show the traceback of an error."""


def _main(options: Options) -> int:
    from mlops.mlflow_store import open_store_client
    from mlops.settings import Settings
    from registry.catalog import Catalog
    from registry.probe import ModelFailedError
    from registry.signing import UnverifiedError

    settings = Settings.from_env()
    catalog = Catalog(open_store_client(settings))
    release = find_release(catalog, options.what)
    wrong, key = "", None
    try:
        key = verify_release(catalog, release, settings).key
    except (UnverifiedError, ModelFailedError) as err:
        wrong = str(err).rstrip(".")
    title = f"{release.name} version {release.version}"
    if options.json:
        fields = {"name": release.name, "version": release.version, "key": key}
        answer_json({**fields, "verified": not wrong, "reason": wrong})
    elif wrong:
        answer(f"{title} does not verify: {wrong}.")
    else:
        answer(f"{title} verifies: signature (key {key}), statement, files, golden answers.")
    return 1 if wrong else 0


def main(args: list[str] | None = None) -> int:
    return run_program(
        Options,
        _main,
        prog="python -m registry.verify",
        description="Tell whether a release is what was signed, and answers as it did.",
        args=args,
    )


if __name__ == "__main__":
    sys.exit(main())
