"""The MLflow UI in a real headless browser: what a person sees after a sweep.

`python -m tests.e2e.pictures` takes docs/pictures anew, from the runs in MLOPS_HOME.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Page, sync_playwright

from experiments.figures import FOLDER
from experiments.results import runs_url
from mlops.mlflow_store import open_client
from mlops.server import open_server
from mlops.settings import Settings

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def open_page() -> Iterator[Page]:
    """A page of a new Chromium with an empty profile."""
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=shutil.which("chromium"),
            headless=True,
            args=FLAGS,
            viewport={"width": 1500, "height": 900},
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        yield page
        context.close()


def show_charts(page: Page, url: str, run: str) -> None:
    """Opens the address that a sweep printed, and waits for a run and a chart over all runs."""
    page.goto(url)
    page.get_by_text(run, exact=True).first.wait_for()
    page.get_by_text("best_val_accuracy", exact=True).first.wait_for()
    page.locator(".js-plotly-plot").first.wait_for()


def show_table(page: Page, url: str, run: str) -> None:
    """Opens the same runs as a table, without the assistant beside it."""
    page.goto(url.replace("&compareRunsMode=CHART", ""))
    page.get_by_text(run, exact=True).first.wait_for()
    close = page.get_by_role("button", name="Close")
    if close.count():
        close.first.click()


def search_runs(page: Page, url: str, query: str, found: str) -> None:
    """Types a query into the search box over the table of runs, and waits for a run it finds."""
    show_table(page, url, found)
    page.get_by_placeholder("metrics.rmse").fill(query)
    page.keyboard.press("Enter")
    page.get_by_text(found, exact=True).first.wait_for()


def show_compared(
    page: Page, server_url: str, experiment: str, runs: Sequence[str], params: Sequence[str]
) -> None:
    """Opens the page that compares runs: parallel coordinates of params and the best accuracy."""
    # In this order: the page finds the runs only where they come first.
    query = {
        "runs": json.dumps(list(runs)),
        "experiments": json.dumps([experiment]),
        "workflowType": "machine_learning",
    }
    page.goto(f"{server_url}/#/compare-runs?{urlencode(query)}")
    page.get_by_role("button", name="Clear All").click()
    for box, names in enumerate((params, ("best_val_accuracy",))):
        page.get_by_role("combobox").nth(box).click(force=True)
        for name in names:
            page.locator(f'[class*="select-item-option"][title="{name}"]').last.click()
        page.keyboard.press("Escape")
    page.locator(".js-plotly-plot .parcoords").first.wait_for()


def show_artifact(page: Page, server_url: str, experiment: str, run: str, path: str) -> None:
    """Opens a run at a picture or a page among its artifacts, and waits until it is there."""
    where = f"#/experiments/{experiment}/runs/{run}/artifacts/{path}"
    page.goto("about:blank")  # a page that is open shows no other artifact by its address alone
    page.goto(f"{server_url}/{where}?workflowType=machine_learning")
    if path.endswith(".png"):
        page.get_by_role("img", name=path).wait_for()
    else:
        page.frame_locator("iframe").get_by_role("heading").first.wait_for()


def show_registry(page: Page, server_url: str, model: str) -> None:
    """Opens a registered model's page, with its versions and aliases."""
    page.goto(f"{server_url}/#/models/{model}")
    page.get_by_text("champion").first.wait_for()


def show_card(page: Page, server_url: str, model: str, version: int) -> None:
    """Opens the page of a version, whose description is its model card."""
    page.goto(f"{server_url}/#/models/{model}/versions/{version}")
    page.get_by_role("heading", name="Gates").first.wait_for()


def hide_home(page: Page, home: Path) -> None:
    """Writes another folder's name where the page shows the home's."""
    page.evaluate(
        """([home, shown]) => {
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const node = walker.currentNode;
                node.textContent = node.textContent.replaceAll(home, shown);
            }
        }""",
        [str(home), "/home/ada/podium/.mlops"],
    )


def find_trials(client: Any, experiment: str) -> list[str]:
    """Returns the run ids of the finished trials of classifiers."""
    query = (
        "attributes.status = 'FINISHED' and tags.`mlops.trial` != '' and metrics.val_accuracy > 0"
    )
    return [run.info.run_id for run in client.search_runs([experiment], query)]


def find_parents(client: Any, experiment: str, architecture: str) -> list[str]:
    """Returns the run ids of an architecture's studies."""
    query = f"tags.`mlops.architecture` = '{architecture}'"
    found = client.search_runs([experiment], query)
    return [run.info.run_id for run in found if "mlflow.parentRunId" not in run.data.tags]


def find_drawn(client: Any, experiment: str, architecture: str) -> list[str]:
    """Returns the run ids of an architecture's trials that have figures."""
    query = f"tags.`mlops.trial` != '' and tags.`mlops.architecture` = '{architecture}'"
    found = [run.info.run_id for run in client.search_runs([experiment], query)]
    return [run_id for run_id in found if client.list_artifacts(run_id, FOLDER)]


def main(folder: str = "docs/pictures") -> int:
    settings = Settings.from_env()
    with open_server(settings) as server, open_page() as page:
        server.wait()
        client = open_client(server.url)
        experiment = client.get_experiment_by_name("digits")
        url = runs_url(server.url, experiment.experiment_id, "val_accuracy")
        show_table(page, url, "cnn-000")  # closes the assistant's panel, which the UI remembers
        show_charts(page, url, "cnn-000")
        page.wait_for_timeout(4000)  # the charts draw themselves one after the other
        page.screenshot(path=str(Path(folder) / "charts.png"))
        trials = find_trials(client, experiment.experiment_id)
        params = ("architecture", "learning_rate", "batch_size")
        show_compared(page, server.url, experiment.experiment_id, trials, params)
        page.wait_for_timeout(1000)
        page.screenshot(path=str(Path(folder) / "compared.png"))
        (best,) = find_drawn(client, experiment.experiment_id, "cnn")
        path = "plots/attribution.png"
        show_artifact(page, server.url, experiment.experiment_id, best, path)
        page.wait_for_timeout(1000)
        hide_home(page, settings.home)
        page.screenshot(path=str(Path(folder) / "figures.png"))
        show_registry(page, server.url, "digits-classifier")
        page.wait_for_timeout(1000)
        page.screenshot(path=str(Path(folder) / "registry.png"))
        page.set_viewport_size({"width": 1500, "height": 1700})
        show_card(page, server.url, "digits-classifier", 1)
        page.wait_for_timeout(1000)
        page.screenshot(path=str(Path(folder) / "card.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
