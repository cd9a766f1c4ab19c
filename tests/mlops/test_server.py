from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from mlops.errors import ServerError, UsageError
from mlops.lease import Address, ServerFolder, try_lock
from mlops.server import Server, is_loopback, open_server
from mlops.settings import Settings
from mlops.supervisor import local_url

HOLDER = """
import sys
from mlops.server import open_server
from mlops.settings import Settings

with open_server(Settings.from_env({"MLOPS_HOME": sys.argv[1]})) as server:
    print(server.url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """An empty home; whatever a test leaves running on it is ended by pid."""
    home = tmp_path / "my home"
    yield Settings.from_env({"MLOPS_HOME": str(home)})
    for process in processes_of(home):
        process.kill()
        process.wait(10)


def processes_of(home: Path) -> list[psutil.Process]:
    """Supervisor and MLflow of a home: both have its server folder on their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(home / "server") in (process.info["cmdline"] or []):
            found.append(process)
    return found


@contextmanager
def run_holder(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    with run_python("-c", HOLDER, str(settings.home)) as process:
        yield process


@contextmanager
def run_python(*args: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def run_program(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    with run_python("-m", "mlops.server", *args, **env) as process:
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(args, process.returncode, out, err)


def address_of(settings: Settings) -> Address:
    address = ServerFolder(settings.home / "server").find_address()
    assert address is not None
    return address


def is_listening(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as sock:
        return sock.connect_ex((str(parts.hostname), int(parts.port or 0))) == 0


def get(url: str, **headers: str) -> int:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as err:
        err.close()
        return err.code


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.1)


def wait_until_ended(settings: Settings, url: str) -> None:
    wait_until(lambda: not processes_of(settings.home) and not is_listening(url))


def test_a_second_holder_joins_the_running_server(tracking) -> None:
    with open_server(tracking.settings) as server:
        assert server.joined
        assert server.url == tracking.url
        server.wait(5)


def test_the_server_serves_the_home_s_own_database_and_folder(tracking) -> None:
    with urllib.request.urlopen(
        f"{tracking.url}/api/2.0/mlflow/experiments/get?experiment_id=0", timeout=30
    ) as response:
        body = response.read().decode()
    assert str(tracking.settings.artifact_root / "0") in body
    assert (tracking.settings.home / "mlflow.db").exists()
    assert stat.S_IMODE(tracking.settings.home.stat().st_mode) == 0o700


def test_mlflow_s_check_of_the_host_name_is_active(tracking) -> None:
    url = f"{tracking.url}/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert get(url) == 200
    assert get(url, Host="rebound.example") == 403


def test_a_joiner_that_asks_for_another_address_is_told_where_the_server_is(tracking) -> None:
    home = str(tracking.settings.home)
    done = run_program("--port", "1234", MLOPS_HOME=home)
    assert done.returncode == 1
    assert tracking.url in done.stderr and "1234" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    with (
        pytest.raises(ServerError, match=re.escape(tracking.url)),
        open_server(tracking.settings, host="0.0.0.0"),
    ):
        pass


def test_the_program_prints_the_ui_and_ctrl_c_is_its_normal_end(tracking) -> None:
    home = str(tracking.settings.home)
    with run_python("-m", "mlops.server", MLOPS_HOME=home) as process:
        link = f"MLflow UI: {tracking.url}/#/experiments?workflowType=machine_learning"
        assert read_line(process) == link
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Ctrl-C" in err and "Traceback" not in err and out == ""


def test_a_killed_mlflow_comes_back_on_the_same_port(tracking) -> None:
    old = address_of(tracking.settings)
    os.kill(old.mlflow_pid, signal.SIGKILL)
    assert get(f"{tracking.url}/health") == 200  # the very next request waits, and is answered
    new = address_of(tracking.settings)
    assert new.mlflow_pid != old.mlflow_pid
    assert new.url == old.url and new.supervisor_pid == old.supervisor_pid


def test_two_that_start_at_once_share_a_server_which_ends_after_the_last_kill(
    settings, tracking
) -> None:
    with run_holder(settings) as one, run_holder(settings) as two:
        url = read_line(one)
        assert url == read_line(two)
        assert url != tracking.url  # another home's server
        assert get(f"{url}/health") == 200
        pids = {process.pid for process in processes_of(settings.home)}
        address = address_of(settings)
        assert pids == {address.supervisor_pid, address.mlflow_pid}
        one.kill()
        one.wait()
        time.sleep(4)  # more than it takes to end after the last holder
        assert get(f"{url}/health") == 200
        assert {process.pid for process in processes_of(settings.home)} == pids
        two.kill()
        two.wait()
        wait_until_ended(settings, url)
    assert ServerFolder(settings.home / "server").find_address() is None
    assert get(f"{tracking.url}/health") == 200


def test_without_its_supervisor_the_server_is_joined_and_still_ends_after_the_last(
    settings,
) -> None:
    with run_holder(settings) as holder:
        url = read_line(holder)
        os.kill(address_of(settings).supervisor_pid, signal.SIGKILL)
        holder.kill()
        holder.wait()
        with open_server(settings) as server:
            assert server.joined and server.url == url
            server.wait()
            time.sleep(4)
            assert get(f"{url}/health") == 200
    wait_until_ended(settings, url)


def test_after_a_kill_while_it_makes_its_database_the_next_server_takes_its_port(
    settings,
) -> None:
    with open_server(settings) as server:
        wait_until((settings.home / "mlflow.db.new").exists)
        for process in processes_of(settings.home):
            process.kill()
        wait_until(lambda: not processes_of(settings.home))
        assert not (settings.home / "mlflow.db").exists()
        with pytest.raises(ServerError, match="has ended"):
            server.wait(20)
        with open_server(settings) as next_server:
            assert not next_server.joined
            assert next_server.url == server.url
            next_server.wait()
    wait_until_ended(settings, server.url)
    assert not (settings.home / "mlflow.db.new").exists()


def test_a_database_that_is_none_ends_the_wait_with_the_log_s_last_line(settings) -> None:
    settings.home.mkdir()
    (settings.home / "mlflow.db").write_bytes(b"not a database" * 1000)
    with open_server(settings) as server, pytest.raises(ServerError, match="not a database"):
        server.wait()
    wait_until_ended(settings, server.url)


def test_a_taken_port_is_named_and_nothing_is_started(settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run_program("--port", str(port), MLOPS_HOME=str(settings.home))
    assert done.returncode == 1
    assert f"Port {port} of 127.0.0.1 is taken" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not processes_of(settings.home)
    assert not list((settings.home / "server" / "leases").iterdir())


def test_a_tracking_server_elsewhere_is_refused_before_anything_is_made(settings) -> None:
    done = run_program(
        MLOPS_HOME=str(settings.home), MLFLOW_TRACKING_URI="http://user:secret@127.0.0.1:1"
    )
    assert done.returncode == 2
    assert "unset MLFLOW_TRACKING_URI" in done.stderr and "secret" not in done.stderr
    assert not settings.home.exists()


def test_a_port_out_of_range_is_a_usage_error(settings) -> None:
    with pytest.raises(UsageError, match="1 to 65535"), open_server(settings, port=65536):
        pass


def test_a_server_that_does_not_answer_in_time_is_an_error(tmp_path: Path) -> None:
    folder = ServerFolder(tmp_path)
    folder.create()
    lock = try_lock(folder.server_lock)
    assert lock is not None
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = local_url("127.0.0.1", mute.getsockname()[1])
        with pytest.raises(ServerError, match=r"within 0\.3 s"):
            Server(url, False, folder).wait(0.3)
    os.close(lock)


def test_the_log_s_tail_is_the_last_error_of_the_last_start(tmp_path: Path) -> None:
    folder = ServerFolder(tmp_path)
    assert folder.log_tail() == "nothing"
    folder.log.write_text("=== started 1\nOSError: of old\n=== started 2\nINFO: up\n\n")
    assert folder.log_tail() == "INFO: up"
    with folder.log.open("a") as log:
        log.write("  File x\nsqlalchemy.exc.DatabaseError: (sqlite3) no\n(Background: here)\n")
    assert folder.log_tail() == "sqlalchemy.exc.DatabaseError: (sqlite3) no"


def test_a_lease_counts_while_its_process_has_it_and_a_dead_one_is_deleted(tmp_path: Path) -> None:
    folder = ServerFolder(tmp_path)
    folder.create()
    dead = tmp_path / "leases" / "1-dead"
    dead.touch()
    assert not folder.has_holder()
    assert not dead.exists()
    with folder.lease():
        assert folder.has_holder()
    assert not folder.has_holder()
    assert not list((tmp_path / "leases").iterdir())


def test_nobody_is_counted_out_while_somebody_joins(tmp_path: Path) -> None:
    folder = ServerFolder(tmp_path)
    folder.create()
    look = folder.last_look(grace_s=0.2)
    with folder.starting(timeout_s=1):
        time.sleep(0.3)
        assert look() is None
    assert look() is None  # the grace counts from the join
    time.sleep(0.3)
    held = look()
    assert held is not None
    joiner_waits = threading.Event()

    def join() -> None:
        with folder.starting(timeout_s=5):
            joiner_waits.set()

    joiner = threading.Thread(target=join)
    joiner.start()
    assert not joiner_waits.wait(0.3)  # until the one that ends the server lets go
    os.close(held)
    joiner.join()
    assert joiner_waits.is_set()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5000"),
        ("0.0.0.0", "http://127.0.0.1:5000"),
        ("::1", "http://[::1]:5000"),
        ("::", "http://[::1]:5000"),
        ("podium.example", "http://podium.example:5000"),
    ],
)
def test_the_url_is_one_that_this_machine_reaches(host: str, url: str) -> None:
    assert local_url(host, 5000) == url


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("pc", False)],
)
def test_only_loopback_counts_as_closed_to_others(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
