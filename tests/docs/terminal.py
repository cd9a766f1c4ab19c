"""A terminal in which a page's commands are typed, and what they print is compared with the page.

Numbers, times, digests, paths and the user's name differ from run to run and are left out of the
comparison; so is what stands for `...`, the verdict of a gate, and a warning.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.docs.pages import Command

ENDLESS = ("mlops.server", "registry.serve")
"""Programs that run until Ctrl-C."""
SERVES = "registry.serve"
ASKS = ("curl ", "ask.py", "registry.status")
"""What asks a server, which follows an alias in a moment: asked again until it has."""
PORT = 5001
FOLLOWS_S = 30.0
"""How long a server may take to follow an alias that was moved, on a machine that is busy."""
STARTS_S = 240.0
GATE = re.compile(r"(\w+) .* (pass|warn|off)$")


@dataclass
class Terminal:
    """Types commands in one folder. What does not end runs on beside the next commands.

    Attributes:
        port: In place of 5001; the next one in place of 5002.
    """

    cwd: Path
    env: dict[str, str]
    port: int
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def type(self, command: Command) -> str:
        """Returns what a command printed, as soon as it is what the page shows.

        Raises:
            AssertionError: It failed, or printed something else.
        """
        text = command.text.replace(str(PORT), str(self.port))
        text = text.replace(str(PORT + 1), str(self.port + 1))
        for program in ENDLESS:
            if f"-m {program}" in text:
                return self._start(program, text, command)
        until = time.monotonic() + FOLLOWS_S
        while True:
            said, code = self._run(text)
            missing = first_missing(command.shown, said, self.cwd)
            if code == 0 and missing is None:
                return said
            reads = any(one in text for one in ASKS)
            if not reads or time.monotonic() > until:
                raise AssertionError(
                    f"{command.place}: {text}\nended with {code}; not printed: {missing!r}\n{said}"
                )
            time.sleep(1.0)

    def _run(self, text: str) -> tuple[str, int]:
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=self.cwd,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.stdout, done.returncode

    def _start(self, program: str, text: str, command: Command) -> str:
        log = self.cwd / f"{program}.log"
        if program == SERVES:
            text = f"{text} --port {self.port}"
        with log.open("wb") as out:
            self.running[program] = subprocess.Popen(
                ["bash", "-c", f"exec {text}"],
                cwd=self.cwd,
                env=self.env,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        until = time.monotonic() + STARTS_S
        while (missing := first_missing(command.shown, log.read_text(), self.cwd)) is not None:
            over = self.running[program].poll() is not None or time.monotonic() > until
            assert not over, f"{command.place}: not printed: {missing!r}\n{log.read_text()}"
            time.sleep(0.2)
        if program != SERVES:
            self._end(program)  # looked at, as the page says, and ended
        return log.read_text()

    def _end(self, program: str) -> None:
        process = self.running.pop(program)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        for program in list(self.running):
            self._end(program)


@contextlib.contextmanager
def open_terminal(cwd: Path, env: dict[str, str], port: int) -> Iterator[Terminal]:
    terminal = Terminal(cwd, env, port)
    try:
        yield terminal
    finally:
        terminal.close()


def two_free_ports() -> int:
    """Returns the first of two free ports that follow each other."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


def first_missing(shown: Sequence[str], said: str, cwd: Path) -> str | None:
    """Returns the first line of `shown` that was not printed after those before it."""
    lines = iter([plain(line, cwd) for line in said.splitlines()])
    for line in shown:
        if line.strip() in ("", "...") or line.startswith("Warning: "):
            continue
        cut_off = line.endswith("...")
        wanted = plain(line.removesuffix("..."), cwd)
        if not any(one == wanted or (cut_off and one.startswith(wanted)) for one in lines):
            return line
    return None


def plain(line: str, cwd: Path) -> str:
    """Returns a line without what differs from run to run."""
    line = " ".join(line.replace(str(cwd), "/home/ada/podium").split())
    gate = GATE.match(line)
    if gate:
        return gate[1]
    line = re.sub(rf"\b{re.escape(getpass.getuser())} \(", "ada (", line)
    line = re.sub(r"\b[0-9a-f]{12,}\b", "#", line)
    return re.sub(r"-?\d[\d.:]*(e[-+]?\d+)?", "#", line)
