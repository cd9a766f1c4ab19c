"""The keys as a store: the private key that signs releases, and the public keys that verify them.

A team mounts its keys from elsewhere, and they may be there before anything is restored. So a
restore replaces no key: those that are not known here are laid into `keys` of the home, and what is
still to be set is a finding of the doctor.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlops.errors import MlopsError, UsageError
from mlops.key_files import write_whole
from mlops.settings import Settings
from mlops.stores.backup_record import SIGNING_KEY
from mlops.stores.store import Finding, Health, Steps, Store

FOLDER = "keys"
PUBLIC = "public.pem"
PUBLIC_MARK = b"-----BEGIN PUBLIC KEY-----"


@dataclass(frozen=True, slots=True)
class KeyStore(Store):
    """The files that `MLOPS_SIGNING_KEY` and `MLOPS_PUBLIC_KEYS` name.

    A key never changes, came from no dataset, and verifies what it signed however old that is.
    """

    settings: Settings
    name: str = "keys"
    rank: int = 6

    def check(self) -> Health:
        public = _read_public(self.settings)
        findings = tuple(Finding(self.name, *one) for one in self._wrong(public))
        if not public and not self.settings.signing_key.is_file():
            return Health("none yet", findings)
        signs = "signs" if self.settings.signing_key.is_file() else "no private key"
        return Health(f"{signs}, {len(public)} public", findings)

    def _wrong(self, public: dict[Path, bytes]) -> Iterator[tuple[str, str]]:
        left = (self.settings.home / FOLDER).glob("public-*.pem")
        unknown = [one for one in sorted(left) if one.read_bytes().strip() not in public.values()]
        if unknown:
            names = " and ".join(repr(str(path)) for path in unknown)
            yield (
                f"{names} came with a restore, and MLOPS_PUBLIC_KEYS does not name it: what that "
                "key signed does not verify here.",
                _export([*public, *unknown]),
            )
        private = self.settings.signing_key
        if public and private.is_file():
            from registry.signing import public_half

            if public_half(private).strip() not in public.values():
                yield (
                    f"the public half of the signing key {str(private)!r} is none of "
                    "MLOPS_PUBLIC_KEYS: what it signs would not verify here.",
                    f"openssl pkey -in {shlex.quote(str(private))} -pubout -out signing-public.pem"
                    f" && {_export([*public, Path('signing-public.pem')])}",
                )

    def backup_files(self, home: Path) -> None:
        """Copies the keys that are there; none of them has to be.

        An embedded home has one public key, `public.pem`: here it is the signing key's.
        """
        from registry.signing import key_id

        folder, private = home / FOLDER, self.settings.signing_key
        public = list(_read_public(self.settings).values())
        with _translated("copied"):
            folder.mkdir(mode=0o700, exist_ok=True)
            if private.is_file():
                write_whole(folder / Path(SIGNING_KEY).name, private.read_bytes(), 0o600)
                public.sort(key=lambda pem: pem != self._own_public())
            for pem in public:
                name = PUBLIC if pem == public[0] else f"public-{key_id(pem)}.pem"
                write_whole(folder / name, pem + b"\n", 0o644)

    def _own_public(self) -> bytes:
        from registry.signing import public_half

        with contextlib.suppress(UsageError):  # a key that nobody can use is copied all the same
            return public_half(self.settings.signing_key).strip()
        return b""

    def restore(self, home: Path) -> Steps:
        from registry.signing import key_id

        private, own = self.settings.signing_key, self.settings.home / FOLDER
        source = home / SIGNING_KEY
        is_in_use = source.is_file() and private.is_file() and private.parent == own
        if is_in_use and private.read_bytes() != source.read_bytes():
            raise MlopsError(
                f"there is another signing key at {str(private)!r} already; expected none. Move it "
                "away, or let MLOPS_HOME name another folder."
            )
        yield
        with _translated("restored"):
            for left in own.glob(".*.pem.*"):  # by a restore that was killed
                left.unlink()
            if source.is_file() and not private.is_file():
                private.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(private, source.read_bytes(), 0o600)
            for path in _find_public(home / FOLDER):
                pem = path.read_bytes().strip()
                known = _read_public(self.settings)
                if pem in known.values():
                    continue
                free = [one for one in self.settings.public_keys if one not in known]
                place = free[0] if free else own / f"public-{key_id(pem)}.pem"
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(place, pem + b"\n", 0o644)


def _read_public(settings: Settings) -> dict[Path, bytes]:
    """Returns the public keys that the settings name and that are there, each once."""
    found: dict[Path, bytes] = {}
    for path in settings.public_keys:
        pem = path.read_bytes().strip() if path.is_file() else b""
        if pem and pem not in found.values():
            found[path] = pem
    return found


def _find_public(folder: Path) -> list[Path]:
    """Returns the files of public keys in a folder, that of the signing key first."""
    found = [path for path in folder.glob("*.pem") if PUBLIC_MARK in path.read_bytes()]
    return sorted(found, key=lambda path: (path.name != PUBLIC, path.name))


def _export(paths: list[Path]) -> str:
    return f"export MLOPS_PUBLIC_KEYS={shlex.quote(os.pathsep.join(map(str, paths)))}"


@contextlib.contextmanager
def _translated(done: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        where = err.filename or "a key"
        raise MlopsError(
            f"the keys could not be {done}: {err.strerror or err}: {str(where)!r}. Look at "
            "MLOPS_SIGNING_KEY and MLOPS_PUBLIC_KEYS."
        ) from err
