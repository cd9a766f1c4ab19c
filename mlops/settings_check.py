"""What can be wrong with the settings, all of it at once. No password is repeated."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from mlops.errors import UsageError
from mlops.objects import open_objects
from mlops.settings import SETTINGS, Settings
from mlops.stores.store import Finding, Health

DATABASES = ("sqlite", "postgresql", "mysql", "mariadb")
PRIVATE = 0o077
"""Bits of a file's mode that let others in."""


def check_settings(env: Mapping[str, str]) -> tuple[Settings | None, Health]:
    """Returns the settings, None where they cannot be read, and what is wrong with them."""
    findings = [_finding(*one) for one in _misspelt(env)]
    try:
        settings = Settings.from_env(env)
    except UsageError as err:
        wrong, mend = split_error(err)  # which begins with the setting's name
        findings.append(_finding(wrong, mend or f"unset {wrong.split()[0]}"))
        return None, Health("", tuple(findings))
    findings += [_finding(*one) for one in _all_wrong(settings, env)]
    server = "the embedded server" if settings.embedded else "a tracking server of its own"
    return settings, Health(f"home {settings.home}, {server}", tuple(findings))


def split_error(err: Exception) -> tuple[str, str]:
    """Returns what one of our messages says is wrong, and what it says to do, if anything."""
    wrong, _, mend = str(err).partition(". ")
    return (f"{wrong}.", mend) if mend else (wrong, "")


def _finding(wrong: str, mend: str) -> Finding:
    return Finding("settings", wrong, mend)


Wrong = tuple[str, str]
"""What is wrong, and what mends it."""


def _misspelt(env: Mapping[str, str]) -> Iterator[Wrong]:
    for name in sorted(env):
        if name.startswith("MLOPS_") and name not in SETTINGS:
            # Only what looks like a slip: a house may have variables of this prefix of its own.
            for near in difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.8):
                yield (
                    f"{name} is no setting and is not read; did you mean {near}?",
                    f'export {near}="${name}"; unset {name}',
                )


def _all_wrong(settings: Settings, env: Mapping[str, str]) -> Iterator[Wrong]:
    yield from _wrong_home(settings.home)
    yield from _wrong_database("MLOPS_STUDY_URL", settings.study_url)
    yield from _wrong_database("MLOPS_LEDGER_URL", settings.ledger_url)
    yield from _wrong_behind(settings, env)
    yield from _wrong_keys(settings, env)


def _wrong_home(home: Path) -> Iterator[Wrong]:
    place = home
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        yield (
            f"{str(place)!r} is a file and the home {str(home)!r} lies in it; expected a folder.",
            "Let MLOPS_HOME name a folder.",
        )
    elif not os.access(place, os.W_OK | os.X_OK):
        yield (
            f"the home {str(home)!r} cannot be written; expected the right to write in "
            f"{str(place)!r}.",
            f"chmod u+rwx {shlex.quote(str(place))}",
        )


def _wrong_database(name: str, url: str) -> Iterator[Wrong]:
    scheme, found, rest = url.partition("://")
    if not found or scheme.partition("+")[0] not in DATABASES:
        yield (
            f"{name} is no URL of a database; expected one that begins with sqlite:/// or "
            f"postgresql+psycopg://, got {scheme + found if found else 'a word without ://'}.",
            f"unset {name}",
        )
    elif scheme.startswith("sqlite") and rest.strip("/") in ("", ":memory:"):
        yield (f"{name} is a database in memory, which ends with its process.", f"unset {name}")
    elif not rest.rpartition("@")[2].partition("/")[2]:
        yield (
            f"{name} names no database on its server; expected {scheme}://user@host:port/database.",
            f"Let {name} name the database, too.",
        )


def _wrong_behind(settings: Settings, env: Mapping[str, str]) -> Iterator[Wrong]:
    """What is wrong with the settings that only the administrator has."""
    if env.get("MLOPS_ACCOUNTS_DB_URL"):
        yield from _wrong_database("MLOPS_ACCOUNTS_DB_URL", str(settings.accounts_db_url))
    if env.get("MLOPS_TRACKING_DB_URL"):
        url = str(settings.tracking_db_url)
        wrong = list(_wrong_database("MLOPS_TRACKING_DB_URL", url))
        yield from wrong
        # A server does not say what its database is; one that is written to directly is known.
        if not wrong and not settings.direct_uri.startswith("http") and url != settings.direct_uri:
            yield (
                "MLOPS_TRACKING_DB_URL names another database than the one that runs are written "
                "to, so a backup would be one of something else.",
                "unset MLOPS_TRACKING_DB_URL",
            )
    if env.get("MLOPS_ARTIFACTS_URL"):
        try:
            objects = open_objects(str(settings.artifacts_url), "MLOPS_ARTIFACTS_URL")
        except UsageError as err:
            yield split_error(err)
            return
        if settings.embedded and objects.url != str(settings.artifact_root):
            yield (
                f"MLOPS_ARTIFACTS_URL names {objects.url}; expected the folder of the embedded "
                f"server, {str(settings.artifact_root)!r}.",
                "unset MLOPS_ARTIFACTS_URL",
            )


def _wrong_keys(settings: Settings, env: Mapping[str, str]) -> Iterator[Wrong]:
    keys = [("MLOPS_SIGNING_KEY", settings.signing_key)]
    keys += [("MLOPS_PUBLIC_KEYS", key) for key in settings.public_keys]
    for name, key in keys:
        # The keys of an embedded home are made by its first promotion.
        if name in env and not key.is_file():
            yield (
                f"{name} names {str(key)!r}, and no file is there.",
                f"Put the key there, or type: unset {name}",
            )
    secret = settings.signing_key
    if secret.is_file() and secret.stat().st_mode & PRIVATE:
        yield (
            f"the signing key {str(secret)!r} can be read by others; expected mode 600, got "
            f"{secret.stat().st_mode & 0o777:o}.",
            f"chmod 600 {_quoted(secret)}",
        )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
