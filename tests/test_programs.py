"""What all programs share: quick help, one-line errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.podium import PROGRAMS
from mlops.program import answer_json, command_line

MODULES = [module for module, _ in PROGRAMS.values()]
HEAVY = ("tensorflow", "keras", "mlflow", "optuna", "pandas", "sklearn", "distributed", "numpy")
HELP = """
import importlib, sys
try:
    importlib.import_module(sys.argv[1]).main(["--help"])
except SystemExit as end:
    print("exit", end.code)
print("heavy", [name for name in sys.argv[2:] if name in sys.modules])
"""


STATUS = """
import sys
from experiments.status import main
code = main(sys.argv[2:])
print("exit", code, [name for name in sys.argv[1].split() if name in sys.modules])
"""


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], env={**os.environ, **env}, capture_output=True, text=True
    )


@pytest.mark.parametrize("module", MODULES)
def test_help_imports_nothing_heavy(module: str) -> None:
    done = run("-c", HELP, module, *HEAVY)
    assert "usage:" in done.stdout
    assert done.stdout.strip().splitlines()[-2:] == ["exit 0", "heavy []"]


def test_podium_lists_its_programs_and_runs_one_with_its_own_options() -> None:
    listed = run("-m", "experiments.podium", "--help")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in PROGRAMS)
    own = run("-m", "experiments.podium", "sweep", "--help")
    assert "--architectures" in own.stdout
    unknown = run("-m", "experiments.podium", "sweeep")
    assert unknown.returncode == 2
    assert "did you mean 'sweep'?" in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--trials", "0"], "--trials must be at least 1, got 0"),
        (["--dataset", "digit"], "did you mean 'digits'"),
        (["--dataset", "absent.npz"], "absent.npz"),
        (["--dataset", "absent.csv", "--label", "y"], "absent.csv"),
    ],
)
def test_wrong_input_is_one_line_exit_code_2_and_nothing_is_created(
    arguments: list[str], fragment: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    done = run("-m", "experiments.sweep", *arguments, MLOPS_HOME=str(home))
    assert done.returncode == 2
    assert fragment in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
    assert not home.exists()


def test_the_status_needs_neither_tensorflow_nor_mlflow_and_creates_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = run("-c", STATUS, "tensorflow keras mlflow distributed", "--all", MLOPS_HOME=str(home))
    said, last = done.stdout.splitlines()
    assert said.startswith("No sweep has run here yet")
    assert last == "exit 0 []"
    assert not home.exists()


def test_a_dry_run_says_what_would_be_done_and_creates_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = run(
        *("-m", "experiments.sweep", "--dry-run", "--architectures", "vae"), MLOPS_HOME=str(home)
    )
    assert done.returncode == 0, done.stderr
    assert "vae: 15 trials of 20 epochs" in done.stdout
    assert "latent_dim" in done.stdout
    assert not home.exists()


def test_json_is_one_line_without_nan(capsys: pytest.CaptureFixture[str]) -> None:
    answer_json({"value": float("nan"), "list": [1.5, float("inf")], "tuple": (1,)})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0]) == {"value": None, "list": [1.5, None], "tuple": [1]}


def test_a_printed_command_runs_in_a_shell_that_has_not_activated_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    printed = command_line("python", "-c", "import sys; print(sys.prefix)")
    bare = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(printed, shell=True, env=bare, capture_output=True, text=True)
    assert done.stdout.strip() == sys.prefix


def test_a_printed_command_repeats_the_settings_it_was_given_but_no_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLOPS_HOME", "/a folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:secret@host")
    printed = command_line("python", "-m", "mlops.sync")
    assert "MLOPS_HOME='/a folder'" in printed
    assert 'MLFLOW_TRACKING_URI="$MLFLOW_TRACKING_URI"' in printed
    assert "secret" not in printed
