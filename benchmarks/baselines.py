"""A searched DNN beside scikit-learn's baselines: `python -m benchmarks.baselines`.

Three small real tables, five splits each. All three models see the same encoded features
(`Dataset.part`), are fitted on the training rows, and may try ten settings; the one with the
highest accuracy on the validation rows answers the test rows, once. Of equal ones the first counts,
and the first of each list is the default.

The DNN is searched as `python -m experiments.sweep` does it, ten trials of 20 epochs in Podium's
own space, two at a time. Its answers are those of the registered candidate, downloaded and asked
with raw rows. The others are fitted one after another, with one thread.

The label of the penguins is their sex: their species, which one predicts as a rule, is told almost
wholly by two measurements, which leaves little to compare. The 11 birds of unknown sex are left
out.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.tables import hardware
from experiments.config import SweepConfig
from experiments.sweep import run_sweep
from experiments.trial import set_up_process
from experiments.workers.cluster import Cluster, open_cluster
from mlops.data import Dataset, load_dataset
from mlops.evaluation import score_classifier
from mlops.mlflow_store import open_client
from mlops.packaging import load_model
from mlops.server import open_server
from mlops.settings import Settings, quiet
from registry.catalog import Catalog

SPLITS = 5
TRIALS = 10
EPOCHS = 20
WORKERS = 2
DNN = "DNN (Podium)"
LINEAR = "logistic regression"
TREES = "gradient boosting"
METRICS = ("accuracy", "macro_f1")
REGULARISATION = (1.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 3.0, 10.0, 30.0)
"""C of the logistic regression."""
BOOSTING = (
    {},
    *(
        {"learning_rate": rate, "max_depth": depth}
        for rate in (0.03, 0.1, 0.3)
        for depth in (2, 4, 8)
    ),
)


def write_tables(folder: Path) -> dict[str, tuple[Path, str]]:
    """Returns each table's file and label, by name."""
    from sklearn.datasets import load_breast_cancer, load_wine

    penguins = pd.read_csv(str(resources.files("palmerpenguins") / "data" / "penguins.csv"))
    cancer, wine = load_breast_cancer(as_frame=True), load_wine(as_frame=True)
    tables = {
        "penguins": (penguins.dropna(subset=["sex"]), "sex"),
        "breast cancer": (
            cancer.data.assign(diagnosis=cancer.target_names[cancer.target]),
            "diagnosis",
        ),
        "wine": (wine.data.assign(cultivar=wine.target), "cultivar"),
    }
    files = {}
    for name, (frame, label) in tables.items():
        path = folder / f"{name.replace(' ', '-')}.csv"
        frame.to_csv(path, index=False)
        files[name] = (path, label)
    return files


def search_dnn(
    path: Path, label: str, seed: int, settings: Settings, cluster: Cluster, catalog: Catalog
) -> Any:
    """Returns the packaged network of a sweep's best trial."""
    config = SweepConfig(
        dataset=str(path),
        label=label,
        split_seed=seed,
        architectures=("dnn",),
        trials=TRIALS,
        epochs=EPOCHS,
        workers=WORKERS,
    )
    made = run_sweep(config, settings=settings, cluster=cluster).studies[0].candidate
    assert made is not None
    candidates = catalog.find_candidates(made.name.removesuffix("-candidates"))
    candidate = next(one for one in candidates if one.version == made.version)
    folder = Path(tempfile.mkdtemp(dir=settings.home))
    return load_model(catalog.download(candidate, folder))


def choose_rival(name: str, dataset: Dataset) -> Any:
    """Returns the fitted model that is best on the validation rows, the first of equal ones."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    models = {
        LINEAR: [
            make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=10_000))
            for c in REGULARISATION
        ],
        TREES: [HistGradientBoostingClassifier(**told, random_state=0) for told in BOOSTING],
    }[name]
    with threadpool_limits(1):
        fitted = [model.fit(*dataset.part("train")) for model in models]
        return max(fitted, key=lambda model: model.score(*dataset.part("val")))


def score(answers: Any, dataset: Dataset) -> dict[str, float]:
    """Returns the metrics over the test rows, in percent."""
    values = score_classifier(answers, dataset.labels("test")).values
    return {metric: 100 * values[metric] for metric in METRICS}


def interval(values: Sequence[float]) -> str:
    """Returns the mean and half of Student's 95 % interval."""
    from scipy.stats import t

    n = len(values)
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return f"{statistics.mean(values):.1f} ± {half:.1f}"


def main() -> None:
    quiet()
    set_up_process(threads=1)
    n_test: dict[str, list[int]] = defaultdict(list)
    scores: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.from_env({"MLOPS_HOME": home})
        tables = write_tables(Path(home))
        with (
            open_server(settings) as server,
            open_cluster(WORKERS, 1, settings.home / "logs" / "workers.log") as cluster,
        ):
            server.wait()
            catalog = Catalog(open_client(server.url))
            for table, (path, label) in tables.items():
                for seed in range(SPLITS):
                    dataset = load_dataset(str(path), label=label, split_seed=seed)
                    n_test[table].append(dataset.counts()["test"])
                    for name in (DNN, LINEAR, TREES):
                        began = time.perf_counter()
                        if name == DNN:
                            model = search_dnn(path, label, seed, settings, cluster, catalog)
                            seconds[table, name].append(time.perf_counter() - began)
                            answers = model.predict(dataset.requests("test"))
                        else:
                            model = choose_rival(name, dataset)
                            seconds[table, name].append(time.perf_counter() - began)
                            answers = model.predict_proba(dataset.part("test")[0])
                        scores[table, name].append(score(answers, dataset))
    print_scores(n_test, scores, seconds)


def print_scores(
    n_test: dict[str, list[int]],
    scores: dict[tuple[str, str], list[dict[str, float]]],
    seconds: dict[tuple[str, str], list[float]],
) -> None:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("keras", "scikit-learn"))
    print("### A searched DNN beside scikit-learn's baselines\n")
    print(f"Hardware: {hardware()}; {versions}. Date: {datetime.now(UTC):%Y-%m-%d}.")
    print("Command: `python -m benchmarks.baselines`.\n")
    print(
        "| table | model | n splits | test rows | accuracy, % | macro-F1, % "
        "| accuracy: DNN minus it | macro-F1: DNN minus it | seconds a split |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for (table, name), found in scores.items():
        cells = [interval([one[metric] for one in found]) for metric in METRICS]
        for metric in METRICS:
            pairs = zip(scores[table, DNN], found, strict=True)
            differences = [dnn[metric] - one[metric] for dnn, one in pairs]
            cells.append("" if name == DNN else interval(differences))
        rows = f"{min(n_test[table])} to {max(n_test[table])}"
        print(
            f"| {table} | {name} | {len(found)} | {rows} | {' | '.join(cells)} "
            f"| {statistics.mean(seconds[table, name]):.1f} |"
        )
    print(flush=True)


if __name__ == "__main__":
    main()
