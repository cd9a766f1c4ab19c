"""What cannot be served is told in one sentence, before anything is made."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from mlops.errors import MlopsError, UsageError
from registry import serve
from registry.alias import Registry
from registry.serve import main
from tests.e2e.serving import free_port
from tests.registry.sides import NAME


@pytest.fixture
def home(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLOPS_HOME", str(registry.settings.home))
    return registry.settings.home


def said(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = main(list(args))
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    return code, err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["side-classifier"], f"did you mean {NAME!r}?"),
        ([f"{NAME}@chmpion"], "did you mean 'champion'?"),
        ([f"{NAME}@v3"], "reserved by MLflow"),
        ([f"{NAME}@a b"], "no name of an alias"),
        (["a/b"], "is no name of a model"),
        ([NAME, "--challenger", "110%"], "expected 0% to 100%, or 0 to 1, got '110%'"),
        ([NAME, "--challenger", "10"], "expected 0% to 100%"),
        ([NAME, "--challenger", "nan"], "expected 0% to 100%"),
        ([f"{NAME}@challenger", "--shadow"], "cannot be compared with itself"),
        ([NAME, "--watch", NAME], "names no other model"),
        ([NAME, "--watch", "auto"], "there is no model 'sides-vae'"),
        ([NAME, "--watch", "sides-vae@v3"], "reserved by MLflow"),
        ([NAME, "--watch", "a/b"], "is no name of a model"),
        ([NAME, "--watch-rows-s", "0"], "--watch-rows-s must be from 0.1 to 1000, got 0.0"),
        ([NAME, "--watch-window", "49"], "--watch-window must be at least 50, got 49"),
        ([NAME, "--workers", "0"], "--workers must be at least 1, got 0"),
        ([NAME, "--interval-s", "0"], "--interval-s must be from 0.05 to 3600"),
        ([NAME, "--port", "0"], "--port must be from 1 to 65535, got 0"),
        ([NAME, "--port", "65535"], "--metrics-port must be from 1 to 65535, got 65536"),
        ([NAME, "--port", "7000", "--metrics-port", "7000"], "both 7000"),
        ([NAME, "--host", "203.0.113.7"], "cannot listen on 203.0.113.7"),
    ],
)
def test_what_cannot_be_served_is_a_usage_error(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    if "--port" not in arguments:
        arguments = [*arguments, "--port", str(free_port())]
    code, err = said(capsys, *arguments)
    assert (code, sentence in err) == (2, True), err
    assert not (home / "serving").exists()


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_that_is_taken_is_a_usage_error(
    home: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"--port": str(free_port()), option: str(taken.getsockname()[1])}
        code, err = said(capsys, NAME, *(word for pair in ports.items() for word in pair))
    assert code == 2
    assert f"Name another with {option}" in err


def test_where_nothing_was_promoted_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOPS_HOME", str(tmp_path / "home"))
    code, err = said(capsys, NAME, "--port", str(free_port()))
    assert code == 2
    assert "nothing was promoted" in err
    assert not (tmp_path / "home").exists()


def test_without_the_registry_and_without_a_kept_copy_it_cannot_begin(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main([NAME, "--port", str(free_port())]) == 1
    assert "no copy of a release is kept here" in capsys.readouterr().err


def test_a_first_release_that_does_not_verify_is_not_served(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLOPS_PUBLIC_KEYS", str(tmp_path / "absent.pem"))
    code, err = said(capsys, NAME, "--port", str(free_port()))
    assert code == 3
    assert "does not verify: there is no public key" in err


class Registries:
    """Answers like `Catalog.find_aliases`, with one of several after another."""

    def __init__(self, *answers: dict[str, int] | MlopsError) -> None:
        self.answers = list(answers)

    def find_aliases(self, name: str) -> dict[str, int]:
        answer = self.answers.pop(0)
        if isinstance(answer, MlopsError):
            raise answer
        return answer

    def find_releases(self, name: str) -> list[int]:
        return [1]


def test_who_waits_waits_for_an_alias_that_was_taken_away_although_copies_are_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "WAIT_EVERY_S", 0.0)
    down = MlopsError("it does not answer")

    def find(*answers: dict[str, int] | MlopsError, wait: bool, has_copies: bool) -> bool:
        catalog: Any = Registries(*answers)
        return serve._find_known(catalog, NAME, "champion", wait, has_copies)

    assert find({}, {}, {"champion": 1}, wait=True, has_copies=True)
    assert capsys.readouterr().err.count("waiting for") == 1
    assert not find(down, wait=True, has_copies=True)  # the copies are served
    assert find(down, {"champion": 1}, wait=True, has_copies=False)
    assert not find(down, wait=False, has_copies=False)
    with pytest.raises(UsageError, match="has no alias 'champion'"):
        find({"other": 1}, wait=False, has_copies=True)
