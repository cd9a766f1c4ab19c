"""examples/pipeline.yml, run as the service whose syntax it has would run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops.mlflow_store import open_store_client
from mlops.settings import Settings
from registry.catalog import Catalog
from registry.ledger import open_ledger
from tests.e2e.serving import free_port

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
PIPELINE = yaml.safe_load((ROOT / "examples" / "pipeline.yml").read_text())
STEPS: list[dict[str, Any]] = [one for one in PIPELINE["jobs"]["model"]["steps"] if "run" in one]
ENV: dict[str, str] = PIPELINE["env"]
MODEL = ENV["MODEL"]


@dataclass
class Job:
    """A run of the job.

    Attributes:
        outcomes: Of each step by its name: success, failure or skipped.
        said: What each step that ran printed, both streams.
        summary: What the service would show of the job.
    """

    outcomes: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, dict[str, str]] = field(default_factory=dict)
    summary: str = ""

    @property
    def failed(self) -> bool:
        return "failure" in self.outcomes.values()

    def wants(self, step: dict[str, Any]) -> bool:
        """Evaluates a step's `if`, as far as the pipeline uses that language."""
        condition = step.get("if", "success()").replace("&&", "and").replace("||", "or")
        condition = re.sub(
            r"steps\.(\w+)\.outputs\.(\w+)",
            lambda found: repr(self.outputs.get(found[1], {}).get(found[2], "")),
            condition,
        )
        status = {
            "always": lambda: True,
            "cancelled": lambda: False,
            "failure": lambda: self.failed,
            "success": lambda: not self.failed,
        }
        if not any(f"{name}()" in condition for name in status):
            condition = f"success() and ({condition})"
        return bool(eval(condition, dict(status)))


def run_job(folder: Path, home: Path, **env: str) -> Job:
    """Runs all steps in an empty folder; `env` in place of what the pipeline says."""
    folder.mkdir()
    job = Job()
    summary = folder.parent / f"{folder.name}-summary"
    for number, step in enumerate(STEPS):
        if not job.wants(step):
            job.outcomes[step["name"]] = "skipped"
            continue
        output = folder.parent / f"{folder.name}-output{number}"
        given = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(summary), **env}
        done = run_step(step, folder, home, **given)
        job.outcomes[step["name"]] = "failure" if done.returncode else "success"
        job.said[step["name"]] = done.stdout
        if output.exists() and "id" in step:
            lines = output.read_text().splitlines()
            job.outputs[step["id"]] = dict(line.split("=", 1) for line in lines)
    job.summary = summary.read_text() if summary.exists() else ""
    return job


def run_step(
    step: dict[str, Any], folder: Path, home: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    own = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        **ENV,
        "MLOPS_HOME": str(home),
        "POLICY": str(ROOT / ENV["POLICY"]),
        "SMOKE_BODY": str(ROOT / ENV["SMOKE_BODY"]),
        **env,
    }
    return subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=folder,
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_champion_is_served_and_one_that_fails_its_smoke_test_is_rolled_back(
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    small = "--study once --architectures dnn --trials 1 --epochs 8 --workers 1"
    port = str(free_port())
    first = run_job(tmp_path / "first", home, SWEEP=small, PORT=port)
    skipped = {name for name, outcome in first.outcomes.items() if outcome == "skipped"}
    assert (first.failed, skipped) == (False, {"Roll back"}), first.said
    assert ENV["SMOKE_EXPECT"] in first.said["Smoke test"]
    assert f"{MODEL} version 1 verifies" in first.said["Smoke test"]
    assert first.summary.startswith(f"{MODEL}: promoted, accuracy 0.")
    assert not (tmp_path / "first" / "serve.pid").exists()
    assert champion(home) == 1

    add_better_candidate(home)
    second = run_job(
        tmp_path / "second", home, SWEEP=small, PORT=port, SMOKE_EXPECT='"label": "eleven"'
    )
    assert second.outcomes == {
        "Install": "success",
        "Sweep": "success",
        "Promote": "success",
        "Serve": "success",
        "Smoke test": "failure",
        "Roll back": "success",
        "Stop the server": "success",
    }, second.said
    said = second.said["Smoke test"]
    assert 'expected "label": "eleven" in the answer, got {"predictions"' in said
    back = f"{MODEL} version 1 is champion again, in place of version 2"
    assert back in second.said["Roll back"]
    assert champion(home) == 1
    with open_ledger(Settings.from_env({"MLOPS_HOME": str(home)}).ledger_url) as ledger:
        events = ledger.events(MODEL)
        assert ledger.check() == []
    ends = [(event.kind, event.version) for event in events if event.kind != "intent"]
    assert ends == [("done", 1), ("done", 2), ("rolled_back", 1)]


def add_better_candidate(home: Path) -> None:
    """Registers the first candidate again with a higher score, as another sweep's would be."""
    client = open_store_client(Settings.from_env({"MLOPS_HOME": str(home)}))
    first = client.get_model_version(f"{MODEL}-candidates", "1")
    names = ("architecture", "dataset_fingerprint", "objective")
    tags = {f"mlops.{name}": first.tags[f"mlops.{name}"] for name in names}
    tags["mlops.value"] = "1.0"
    client.create_model_version(f"{MODEL}-candidates", first.source, first.run_id, tags=tags)


def champion(home: Path) -> int | None:
    client = open_store_client(Settings.from_env({"MLOPS_HOME": str(home)}))
    release = Catalog(client).find_alias(MODEL, "champion")
    return None if release is None else release.version


FAKE = """#!/bin/sh
case "$*" in
    "-m registry.promote "*) cat "{folder}/answer"; exit {status} ;;
    "-m "*) echo "$2" >> "{folder}/typed" ;;
    *) exec "{python}" "$@" ;;
esac
"""


@dataclass
class Fakes:
    """Programs in place of the real ones, and the modules and programs that were run."""

    folder: Path

    def promote_answers(self, decision: str, status: int) -> str:
        """Returns the PATH on which they are found; the server they stand for cannot start."""
        answer = {"decision": decision, "reason": "quality: accuracy 0.4000 is below 0.9"}
        (self.folder / "answer").write_text(json.dumps(answer) + "\n" if decision else "")
        python = FAKE.format(folder=self.folder, status=status, python=sys.executable)
        mlflow = f'#!/bin/sh\necho mlflow >> "{self.folder}/typed"\necho no model; exit 1\n'
        for name, text in {"python": python, "mlflow": mlflow}.items():
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)
        return f"{self.folder}:{os.environ['PATH']}"

    @property
    def typed(self) -> list[str]:
        return (self.folder / "typed").read_text().split()


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    (tmp_path / "fakes").mkdir()
    return Fakes(tmp_path / "fakes")


@pytest.mark.parametrize(
    ("decision", "status", "outcome"),
    [
        ("rejected", 3, "failure"),
        ("unchanged", 0, "success"),
        ("proposed", 0, "success"),
        ("", 1, "failure"),
    ],
)
def test_what_is_not_promoted_is_neither_served_nor_rolled_back(
    fakes: Fakes, tmp_path: Path, decision: str, status: int, outcome: str
) -> None:
    path = fakes.promote_answers(decision, status)
    job = run_job(tmp_path / "job", tmp_path / "home", PATH=path)
    assert job.outcomes.pop("Promote") == outcome
    assert job.outcomes == {
        "Install": "success",
        "Sweep": "success",
        "Serve": "skipped",
        "Smoke test": "skipped",
        "Roll back": "skipped",
        "Stop the server": "success",
    }
    assert fakes.typed == ["experiments.sweep"]
    reason = f"{MODEL}: {decision}, quality: accuracy 0.4000 is below 0.9.\n"
    assert job.summary == (reason if decision else "")


def test_a_release_that_cannot_be_served_is_rolled_back(fakes: Fakes, tmp_path: Path) -> None:
    path = fakes.promote_answers("promoted", 0)
    job = run_job(tmp_path / "job", tmp_path / "home", PATH=path, PORT=str(free_port()))
    assert (job.outcomes["Serve"], job.outcomes["Smoke test"]) == ("failure", "skipped")
    assert "no model" in job.said["Serve"]
    assert fakes.typed == ["experiments.sweep", "mlflow", "registry.rollback"]


def test_a_shell_alone_is_told_the_status_and_the_reason(fakes: Fakes, tmp_path: Path) -> None:
    (step,) = [one for one in STEPS if one["name"] == "Promote"]
    path = fakes.promote_answers("rejected", 3)
    done = run_step(
        step, tmp_path, tmp_path / "home", PATH=path, GITHUB_OUTPUT="", GITHUB_STEP_SUMMARY=""
    )
    assert done.returncode == 3
    assert done.stdout == f"{MODEL}: rejected, quality: accuracy 0.4000 is below 0.9.\n"


@pytest.mark.parametrize(
    "told",
    [
        '{"predictions": [{"label": "4", "probabilities": [0.1]}]}',  # stock MLflow
        '{"predictions":[{"label":"4","probabilities":[0.1]}],"model_version":2}',  # registry.serve
    ],
)
def test_the_smoke_test_reads_the_answers_of_both_servers(
    fakes: Fakes, tmp_path: Path, told: str
) -> None:
    (step,) = [one for one in STEPS if one["name"] == "Smoke test"]
    path = fakes.promote_answers("promoted", 0)
    (fakes.folder / "curl").write_text(f"#!/bin/sh\ncat <<'END'\n{told}\nEND\n")
    (fakes.folder / "curl").chmod(0o755)
    done = run_step(step, tmp_path, tmp_path / "home", PATH=path)
    assert (done.returncode, fakes.typed) == (0, ["registry.verify"]), done.stdout
    wrong = run_step(step, tmp_path, tmp_path / "home", PATH=path, SMOKE_EXPECT='"label": "5"')
    assert wrong.returncode == 1
    assert 'expected "label": "5" in the answer, got {"predictions"' in wrong.stdout
