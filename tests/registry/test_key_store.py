"""The keys as a store: what is copied of them, and where they are brought."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mlops.errors import MlopsError
from mlops.key_files import make_signing_key, public_pem, write_whole
from mlops.settings import Settings
from mlops.stores.store import Health
from registry.key_store import KeyStore
from registry.signing import ensure_signing_key, key_id


def settings_of(home: Path, **env: object) -> Settings:
    return Settings.from_env({"MLOPS_HOME": str(home), **{k: str(v) for k, v in env.items()}})


def copy(settings: Settings, backup: Path) -> dict[str, int]:
    """Backs keys up; returns the files and their modes."""
    backup.mkdir(exist_ok=True)
    KeyStore(settings).backup_files(backup)
    return {path.name: path.stat().st_mode & 0o777 for path in (backup / "keys").iterdir()}


def bring(settings: Settings, backup: Path) -> None:
    for _ in KeyStore(settings).restore(backup):
        pass


@pytest.fixture
def old(tmp_path: Path) -> Settings:
    """An embedded home with a pair of keys."""
    settings = settings_of(tmp_path / "old")
    ensure_signing_key(settings)
    return settings


def test_a_pair_is_copied_and_brought_with_its_modes(old: Settings, tmp_path: Path) -> None:
    assert copy(old, tmp_path / "b") == {"signing.pem": 0o600, "public.pem": 0o644}
    assert (tmp_path / "b" / "keys").stat().st_mode & 0o777 == 0o700
    new = settings_of(tmp_path / "new")
    before = os.umask(0)
    try:
        bring(new, tmp_path / "b")
    finally:
        os.umask(before)
    assert new.signing_key.stat().st_mode & 0o777 == 0o600
    assert (new.home / "keys").stat().st_mode & 0o777 == 0o700
    assert new.signing_key.read_bytes() == old.signing_key.read_bytes()
    assert KeyStore(new).check() == Health("signs, 1 public")
    bring(new, tmp_path / "b")  # once more changes nothing
    assert ensure_signing_key(new) == new.signing_key


def test_without_keys_there_is_nothing_to_copy_or_to_bring(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "none")
    assert KeyStore(settings).check() == Health("none yet")
    assert copy(settings, tmp_path / "b") == {}
    bring(settings_of(tmp_path / "new"), tmp_path / "b")
    assert not (tmp_path / "new").exists()


def test_public_keys_alone_are_copied_all_of_them(old: Settings, tmp_path: Path) -> None:
    """Where releases are only verified there is no private key; keys that rotated stay listed."""
    retired = tmp_path / "retired.pem"
    retired.write_bytes(public_pem(make_signing_key()))
    keys = os.pathsep.join(map(str, (retired, *old.public_keys)))
    both = settings_of(old.home, MLOPS_PUBLIC_KEYS=keys)
    name = f"public-{key_id(retired.read_bytes())}.pem"
    assert set(copy(both, tmp_path / "signs")) == {"signing.pem", "public.pem", name}
    # An embedded home verifies by the key that signs there.
    assert (tmp_path / "signs" / "keys" / "public.pem").read_bytes().strip() == (
        old.public_keys[0].read_bytes().strip()
    )
    verifies = settings_of(tmp_path / "server", MLOPS_PUBLIC_KEYS=keys)
    assert len(copy(verifies, tmp_path / "verifies")) == 2
    assert KeyStore(verifies).check() == Health("no private key, 2 public")


def test_a_key_that_no_setting_names_is_said_with_what_to_type(
    old: Settings, tmp_path: Path
) -> None:
    retired = tmp_path / "retired.pem"
    retired.write_bytes(public_pem(make_signing_key()))
    keys = os.pathsep.join(map(str, (*old.public_keys, retired)))
    copy(settings_of(old.home, MLOPS_PUBLIC_KEYS=keys), tmp_path / "b")
    new = settings_of(tmp_path / "new")
    bring(new, tmp_path / "b")
    (one,) = KeyStore(new).check().findings
    assert "MLOPS_PUBLIC_KEYS does not name it" in one.wrong
    typed = subprocess.run(
        f"{one.mend}; printenv MLOPS_PUBLIC_KEYS", shell=True, capture_output=True, text=True
    )
    mended = settings_of(new.home, MLOPS_PUBLIC_KEYS=typed.stdout.strip())
    assert KeyStore(mended).check() == Health("signs, 2 public")


def test_keys_of_a_team_stay_and_those_of_the_backup_lie_beside(
    old: Settings, tmp_path: Path
) -> None:
    copy(old, tmp_path / "b")
    mounted = tmp_path / "secrets"
    mounted.mkdir()
    write_whole(mounted / "signing.pem", make_signing_key(), 0o600)
    (mounted / "public.pem").write_bytes(public_pem((mounted / "signing.pem").read_bytes()))
    before = {path.name: path.read_bytes() for path in mounted.iterdir()}
    team: dict[str, Any] = {
        "MLOPS_SIGNING_KEY": mounted / "signing.pem",
        "MLOPS_PUBLIC_KEYS": mounted / "public.pem",
    }
    settings = settings_of(tmp_path / "admin", **team)
    bring(settings, tmp_path / "b")
    assert {path.name: path.read_bytes() for path in mounted.iterdir()} == before
    (beside,) = (settings.home / "keys").iterdir()
    assert beside.read_bytes().strip() == old.public_keys[0].read_bytes().strip()
    (one,) = KeyStore(settings).check().findings
    assert repr(str(beside)) in one.wrong


def test_another_signing_key_of_the_home_is_refused_first(old: Settings, tmp_path: Path) -> None:
    copy(old, tmp_path / "b")
    new = settings_of(tmp_path / "new")
    ensure_signing_key(new)
    with pytest.raises(MlopsError, match="there is another signing key"):
        next(KeyStore(new).restore(tmp_path / "b"))


def test_a_signing_key_whose_public_half_is_not_listed_is_a_finding(
    old: Settings, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    write_whole(other, make_signing_key(), 0o600)
    (one,) = KeyStore(settings_of(old.home, MLOPS_SIGNING_KEY=other)).check().findings
    assert "is none of MLOPS_PUBLIC_KEYS" in one.wrong
    typed = subprocess.run(
        f"{one.mend}; printenv MLOPS_PUBLIC_KEYS",
        shell=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    keys = [str(tmp_path / key) for key in typed.stdout.strip().split(os.pathsep)]
    mended = settings_of(old.home, MLOPS_SIGNING_KEY=other, MLOPS_PUBLIC_KEYS=os.pathsep.join(keys))
    assert KeyStore(mended).check().findings == ()


def test_a_place_that_cannot_be_written_is_said(old: Settings, tmp_path: Path) -> None:
    copy(old, tmp_path / "b")
    (tmp_path / "file").touch()
    settings = settings_of(tmp_path / "new", MLOPS_SIGNING_KEY=tmp_path / "file" / "signing.pem")
    with pytest.raises(MlopsError, match="the keys could not be restored"):
        bring(settings, tmp_path / "b")
