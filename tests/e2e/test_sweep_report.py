"""The report of a real sweep: left by its driver, made anew by the program, opened in a browser."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.reports.reading import find_sweep, read_sweep, run_keys
from mlops.mlflow_store import open_store_client
from mlops.tracked_runs import read_tracked_runs
from tests.e2e.conftest import Swept

NOT_HERE = """
import sys
from experiments.report import main
code = main(sys.argv[1:])
print("exit", code, [name for name in ("tensorflow", "keras") if name in sys.modules])
"""


def report(swept: Swept, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NOT_HERE, "digits", *options]
    return subprocess.run(command, env=swept.env, cwd=swept.cwd, capture_output=True, text=True)


def logged(swept: Swept) -> dict[str, set[str]]:
    """The files of each parent run, by its key."""
    client: Any = open_store_client(swept.settings)
    sweep = find_sweep(swept.settings, "digits")
    keys = run_keys(swept.settings, sweep)
    runs = {run.key: run.run_id for run in read_tracked_runs(swept.settings) if run.key in keys}
    return {key: {one.path for one in client.list_artifacts(runs[key])} for key in keys}


def test_a_sweep_leaves_its_report_on_both_parent_runs_and_in_its_folder(swept: Swept) -> None:
    found = logged(swept)
    assert len(found) == 2
    assert all({"report.html", "report.md", "summary.json"} <= files for files in found.values())
    sweep = find_sweep(swept.settings, "digits")
    folder = swept.settings.home / "sweeps" / sweep
    text = (folder / "report.md").read_text()
    assert "registry.promote digits-classifier" in text
    assert "going on" not in text  # its driver held it, and was done
    facts = read_sweep(swept.settings, sweep)
    assert facts.state == "done" and facts.environment["keras"]
    assert {one.architecture for one in facts.studies} == {"cnn", "dnn"}
    assert all(one.best and "train_accuracy" in one.best.metrics for one in facts.studies)


def test_the_program_makes_it_anew_without_tensorflow_and_logs_it(
    swept: Swept, tmp_path: Path
) -> None:
    client: Any = open_store_client(swept.settings)
    for run in read_tracked_runs(swept.settings):
        if run.trial is None:
            for name in ("report.html", "report.md"):
                path = client.get_run(run.run_id).info.artifact_uri.removeprefix("file://")
                (Path(path) / name).unlink()
    done = report(swept, "--out", str(tmp_path), "--json")
    *_, answer, last = done.stdout.splitlines()
    assert (done.returncode, last) == (0, "exit 0 []"), done.stderr
    assert json.loads(answer)["files"][0] == str(tmp_path / "report.html")
    assert "not logged" not in done.stderr
    assert all("report.html" in files for files in logged(swept).values())
    assert not (swept.settings.home / "journal" / find_sweep(swept.settings, "digits")).exists()


@pytest.mark.system
def test_the_page_of_a_real_sweep_asks_nobody_for_anything(swept: Swept) -> None:
    from tests.e2e.pictures import open_page

    file = swept.settings.home / "sweeps" / find_sweep(swept.settings, "digits") / "report.html"
    with open_page() as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.context.set_offline(True)
        page.set_viewport_size({"width": 400, "height": 900})
        page.goto(file.as_uri())
        page.get_by_role("heading", name="What to try next").wait_for()
        assert page.locator("svg").count() >= 2
        root = "document.documentElement"
        assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
        assert asked == [file.as_uri()]
