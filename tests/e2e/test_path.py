"""Sweep, promote, serve: each command is the line that the program before it printed."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest

from mlops.dataset_store import open_dataset_store
from mlops.mlflow_store import open_client, open_store_client
from tests.e2e.conftest import Swept
from tests.e2e.pictures import (
    find_drawn,
    find_parents,
    find_trials,
    open_page,
    search_runs,
    show_artifact,
    show_card,
    show_charts,
    show_compared,
    show_registry,
    show_table,
)
from tests.e2e.serving import free_port, serve

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def serve_command(swept: Swept) -> str:
    """What promotion printed for serving, after the printed promotion was typed."""
    done = swept.type(swept.printed_command("registry.promote digits-classifier"))
    assert done.returncode == 0, done.stderr
    assert "digits-classifier version 1 is champion" in done.stdout
    assert "python -m registry.serve digits-classifier\n" in done.stdout
    (line,) = [line.strip() for line in done.stdout.splitlines() if "models serve" in line]
    return line


def test_the_served_champions_labels_are_those_computed_offline_on_the_same_test_rows(
    swept: Swept, serve_command: str, tmp_path: Path
) -> None:
    client = open_store_client(swept.settings)
    version = client.get_model_version_by_alias("digits-classifier", "champion")
    folder = client.download_artifacts(version.run_id, "release", str(tmp_path))
    model = mlflow.pyfunc.load_model(folder)
    podium = model.metadata.metadata["podium"]
    fingerprint = podium["dataset"]["fingerprint"]
    rows, labels = open_dataset_store(swept.settings).get(fingerprint).part("test")
    probabilities = model.predict(rows)
    offline = [podium["class_names"][index] for index in probabilities.argmax(axis=1)]
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.8  # a model that learned something

    port = free_port()
    command = serve_command.replace("--port 5001", f"--port {port}")
    assert command != serve_command
    with serve(command, port, swept.env, swept.cwd, tmp_path / "serve.log") as scorer:
        status, text = scorer.post({"inputs": rows.tolist(), "params": {"labels": True}})
        assert status == 200, text
        answers = json.loads(text)["predictions"]
        assert [answer["label"] for answer in answers] == offline
        served = np.array([answer["probabilities"] for answer in answers])
        np.testing.assert_allclose(served, probabilities, atol=1e-6)
        status, text = scorer.post((README.parent / "examples" / "digit.json").read_bytes())
        assert status == 200, text
        assert json.loads(text)["predictions"][0]["label"] in podium["class_names"]
        encoded = [base64.b64encode(row.tobytes()).decode() for row in rows[:5]]
        status, text = scorer.post({"inputs": encoded})
        assert status == 200, text
        np.testing.assert_allclose(json.loads(text)["predictions"], served[:5], atol=1e-6)


def test_the_vae_is_promoted_by_its_own_name_only_where_one_was_swept(swept: Swept) -> None:
    done = swept.type(
        swept.printed_command("registry.promote digits-classifier").replace("-classifier", "-vae")
    )
    assert done.returncode == 2
    assert "there are no candidates of 'digits-vae'" in done.stderr
    assert "digits-classifier" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_readme_shows_the_commands_that_the_programs_print(
    swept: Swept, serve_command: str
) -> None:
    readme = README.read_text()

    def bare(command: str) -> str:
        """Without the settings of this test's home."""
        words = command.split()
        start = next(i for i, word in enumerate(words) if "=" not in word)
        return " ".join(words[start:])

    for command in (
        swept.printed_command("registry.promote digits-classifier"),
        swept.printed_command("mlops.server").split(" --port")[0],  # 5000 was taken
        "python -m registry.serve digits-classifier",
        serve_command,
    ):
        assert bare(command) in readme, bare(command)
    for line in swept.stdout.splitlines():
        if line.startswith("architecture "):
            assert line in readme  # the leaderboard has the columns that the README shows


@pytest.mark.system
def test_the_runs_can_be_compared_in_a_browser_at_the_address_the_sweep_printed(
    swept: Swept, serve_command: str, tmp_path: Path
) -> None:
    from mlops.server import open_server

    printed = swept.printed_command("/#/experiments/")
    with open_server(swept.settings) as server, open_page() as page:
        server.wait()
        url = server.url + printed[printed.index("/#/") :]
        show_table(page, url, "cnn-001")
        for run in ("cnn-000", "dnn-000", "dnn-001"):
            assert page.get_by_text(run, exact=True).first.is_visible()
        show_charts(page, url, "cnn-000")
        for metric in ("best_val_accuracy", "train_accuracy", "train_loss"):
            page.get_by_text(metric, exact=True).first.wait_for()
        page.screenshot(path=str(tmp_path / "charts.png"))
        assert (tmp_path / "charts.png").stat().st_size > 20_000
        experiment = printed.partition("/#/experiments/")[2].partition("/")[0]
        client = open_client(server.url)
        trials = find_trials(client, experiment)
        params = ("architecture", "learning_rate", "batch_size")
        show_compared(page, server.url, experiment, trials, params)
        assert page.get_by_text(f"Comparing {len(trials)} Runs").is_visible()
        for axis in (*params, "best_val_accuracy"):
            assert page.locator(".parcoords .axis-title").get_by_text(axis, exact=True).is_visible()
        for tab in ("Scatter Plot", "Contour Plot"):
            page.get_by_text(tab).click()
            page.locator(".js-plotly-plot:visible").first.wait_for()
        search_runs(page, url, 'params.architecture = "dnn" and metrics.val_loss < 100', "dnn-000")
        page.get_by_text("cnn-000", exact=True).first.wait_for(state="detached")
        (best,) = find_drawn(client, experiment, "dnn")
        for name in ("confusion_matrix", "calibration", "learning_curves", "attribution"):
            show_artifact(page, server.url, experiment, best, f"plots/{name}.png")
        (parent,) = find_parents(client, experiment, "dnn")
        show_artifact(page, server.url, experiment, parent, "report.html")
        show_registry(page, server.url, "digits-classifier")
        show_card(page, server.url, "digits-classifier", 1)
        assert page.get_by_text("better_than_chance").first.is_visible()
