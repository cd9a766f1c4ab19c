from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mlops.errors import MlopsError
from registry.child import NO_NETWORK, follow_child, run_child, without_secrets
from tests import child_works


def test_a_child_answers_what_its_work_yields_and_nothing_that_is_printed() -> None:
    request = {"a": [1, None, "ü"]}
    told = run_child(child_works.echo, request, 60)
    assert (told.lines[0], len(told.lines), told.death) == (request, 2, None)


def test_a_child_sees_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    monkeypatch.setenv("PODIUM_HARMLESS", "yes")
    seen = run_child(child_works.echo, None, 60).lines[1]
    assert "MLFLOW_TRACKING_PASSWORD" not in seen
    assert {"PODIUM_HARMLESS", "MLFLOW_DISABLE_TELEMETRY"} <= set(seen)


def test_credentials_are_known_by_name_or_as_part_of_a_url() -> None:
    kept = {"PATH": "/bin", "HOME": "/home/ada", "CUDA_VISIBLE_DEVICES": "0", "NO_PROXY": "::1"}
    dropped = dict.fromkeys(
        (
            *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI"),
            *("AWS_PROFILE", "AWS_SESSION_TOKEN", "MLOPS_LEDGER_URL", "MLOPS_SIGNING_KEY"),
            *("GITHUB_TOKEN", "OPENAI_API_KEY", "PGPASSFILE", "SSH_AUTH_SOCK", "db_password"),
            *("GOOGLE_APPLICATION_CREDENTIALS", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
        ),
        "x",
    )
    urls = {"HTTP_PROXY": "http://ada:secret@proxy:3128", "DATABASE": "postgresql://ada@host/db"}
    assert without_secrets({**kept, **dropped, **urls}) == kept


def test_a_child_without_network_reaches_itself_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        told = run_child(child_works.connect, listener.getsockname()[1], 60)
    outside = "ConnectionRefusedError" if told.isolation == NO_NETWORK else "reached"
    assert told.lines == (outside, "own loopback reached")
    assert told.isolation == NO_NETWORK or told.isolation.startswith("not kept from the network: ")


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare of util-linux")
def test_where_the_system_refuses_it_the_child_says_so() -> None:
    # A user namespace whose limit of network namespaces is 0, as a hardened system has it.
    code = (
        "import os, sys; open('/proc/sys/user/max_net_namespaces', 'w').write('0')\n"
        "from registry.child import leave_network; print(leave_network())"
    )
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.stderr.startswith("unshare:"):
        pytest.skip("this system has no user namespaces")
    assert done.stdout.startswith("not kept from the network: the system refused that (")


def test_of_a_child_that_is_killed_the_answers_so_far_count() -> None:
    told = run_child(child_works.answer_and_die, int(signal.SIGKILL), 60)
    assert told.lines == ("first",)
    assert told.death is not None
    assert told.death.startswith("was killed by signal 9 (Killed), as the system does when memory")
    assert told.death.endswith(": what it said last")


@pytest.mark.parametrize(("status", "death"), [(0, None), (3, "ended with exit status 3")])
def test_a_child_that_leaves_early_is_known_by_its_exit_status(
    status: int, death: str | None
) -> None:
    told = run_child(child_works.answer_and_exit, status, 60)
    assert (told.lines, told.death) == (("first",), death)


def test_a_child_that_hangs_is_ended_with_all_that_it_started() -> None:
    began = time.monotonic()
    told = run_child(child_works.answer_and_hang, 600, 3)
    assert told.death == "was not done after 3 s"
    assert time.monotonic() - began < 30
    assert is_gone(told.lines[0])


def test_what_a_child_leaves_running_is_ended_too() -> None:
    told = run_child(child_works.answer_and_hang, 0, 3)
    assert is_gone(told.lines[0])


def test_a_child_ends_when_its_parent_is_killed() -> None:
    code = (
        "from registry.child import run_child; from tests import child_works; "
        "run_child(child_works.answer_and_hang, 600, 600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    (child,) = wait_for_children(psutil.Process(parent.pid))
    (sleeper,) = wait_for_children(child)
    parent.kill()
    parent.wait()
    assert is_gone(child.pid)
    assert is_gone(sleeper.pid)


def test_a_line_that_was_cut_off_is_no_answer() -> None:
    told = run_child(child_works.write_raw, '"forged', 60)
    assert (told.lines, told.death) == (("first",), None)


@pytest.mark.parametrize("raw", ["{not json}\n", "\xff\n", "[" * 100_000 + "\n"])
def test_what_is_no_json_ends_the_answers(raw: str) -> None:
    told = run_child(child_works.write_raw, raw, 60)
    assert (told.lines, told.death) == (("first",), "answered what nobody can read")


def test_a_child_that_cannot_begin_is_an_error_of_the_installation_without_passwords() -> None:
    with pytest.raises(MlopsError, match="could not begin") as caught:
        run_child(child_works.never_begin, None, 60)
    assert "ImportError: no such module, says postgresql://host/db" in str(caught.value)


def test_the_working_folder_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "psutil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "json.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    assert run_child(child_works.echo, 1, 60).lines[0] == 1


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def wait_for_children(process: psutil.Process) -> list[psutil.Process]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found: list[psutil.Process] = process.children()
        if found:
            return found
        time.sleep(0.05)
    return []


def test_the_lines_of_a_child_that_is_followed_come_while_it_goes_on() -> None:
    lines = follow_child(child_works.answer_and_hang, 600, {})
    left_behind = next(lines)
    began = time.monotonic()
    lines.close()
    assert time.monotonic() - began < 60
    # What it started is ended with it.
    assert not psutil.pid_exists(left_behind) or (
        psutil.Process(left_behind).status() == psutil.STATUS_ZOMBIE
    )


def test_a_child_that_is_followed_gets_its_environment_and_no_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    request, names = follow_child(child_works.echo, [1], {"KERAS_BACKEND": "jax"})
    assert request == [1]
    assert "KERAS_BACKEND" in names
    assert "MLFLOW_TRACKING_PASSWORD" not in names


def test_a_child_that_dies_while_it_is_followed_is_an_error_with_its_last_words() -> None:
    lines = follow_child(child_works.answer_and_die, signal.SIGKILL, {})
    assert next(lines) == "first"
    with pytest.raises(MlopsError, match=r"killed by signal 9 .*: what it said last"):
        next(lines)
    with pytest.raises(MlopsError, match="no such module"):
        list(follow_child(child_works.never_begin, None, {}))
