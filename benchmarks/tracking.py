"""What tracking costs a trial: `python -m benchmarks.tracking`.

One CNN baseline on digits, 10 epochs, trained again and again in one process with one thread, the
ways of tracking taking turns. Stock tracking is what one writes by hand: `mlflow.log_metrics` each
epoch and `mlflow.keras.log_model` at the end, to the same embedded server.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.tables import print_table
from experiments.architectures import describe, open_architecture
from experiments.config import BUILT_IN, SweepConfig
from experiments.storage import open_storage
from experiments.study import open_search
from experiments.training import train
from experiments.trial import Training, TrialTask, run_trial, set_up_process
from mlops.data import load_dataset
from mlops.dataset_store import open_dataset_store
from mlops.journal import Journal
from mlops.server import open_server
from mlops.settings import Settings, quiet
from mlops.tracking import Run, new_run_key

ROUNDS = 5
EPOCHS = 10


def main() -> None:
    quiet()
    set_up_process(threads=1)
    import mlflow

    dataset = load_dataset("digits")
    cnn = open_architecture(BUILT_IN["cnn"])
    params = cnn.baseline(dataset.input)
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as home:
        settings = Settings.from_env({"MLOPS_HOME": home})
        open_dataset_store(settings.datasets_url).put(dataset)
        config = SweepConfig(trials=10 * ROUNDS, epochs=EPOCHS)
        search = open_search(
            open_storage(settings.study_url),
            "bench",
            describe(
                BUILT_IN["cnn"], dataset.input, tuple(dataset.class_counts("train")), "accuracy"
            ),
            config,
            {"sweep": "bench", "config_fingerprint": "bench", "run_key": "bench"},
        )

        def untracked() -> None:
            train(cnn, params, dataset, seed=1, epochs=EPOCHS)

        def with_journal() -> None:
            with Journal(Path(home) / "journal" / "bench", "trial") as journal:
                run = Run.create(journal, experiment="bench", name="cnn", params=params)

                def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
                    run.log_metrics(metrics, step=epoch)
                    return False

                train(cnn, params, dataset, seed=1, epochs=EPOCHS, on_epoch=on_epoch)
                run.end("FINISHED")

        def whole_trial() -> None:
            ask = search.ask()
            assert ask is not None
            training = Training(
                architecture=BUILT_IN["cnn"],
                objective="val_accuracy",
                params=params,
                seed=1,
                epochs=EPOCHS,
                dataset_fingerprint=dataset.fingerprint,
                datasets_url=settings.datasets_url,
                name=f"cnn-{ask.number:05d}",
                journal_folder=Path(home) / "journal" / "bench",
                run_key=new_run_key(),
                network=Path(home) / "n.keras",
            )
            task = TrialTask(training, search.name, settings.study_url, ask.trial_id, search.pruner)
            search.tell(ask.number, run_trial(task))

        def stock() -> None:
            with mlflow.start_run():
                mlflow.log_params(params)

                def on_epoch(epoch: int, metrics: dict[str, float]) -> bool:
                    mlflow.log_metrics(metrics, step=epoch)
                    return False

                trained = train(cnn, params, dataset, seed=1, epochs=EPOCHS, on_epoch=on_epoch)
                mlflow.keras.log_model(trained.model, name="model")

        ways = {
            "untracked": untracked,
            "journal": with_journal,
            "Podium's whole trial (journal, study, pruning, saved network)": whole_trial,
            "stock MLflow (log_metrics, log_model)": stock,
        }
        with open_server(settings) as server:
            server.wait()
            mlflow.set_tracking_uri(server.url)
            mlflow.set_experiment("bench")
            untracked()  # the first training of a process pays for TensorFlow's own start
            for _ in range(ROUNDS):
                for name, way in ways.items():
                    began = time.perf_counter()
                    way()
                    seconds[name].append(time.perf_counter() - began)
    print_table(
        "What tracking costs a trial",
        f"digits, CNN baseline, {EPOCHS} epochs, 1 thread, ways taking turns in one process",
        "python -m benchmarks.tracking",
        "seconds",
        seconds,
    )


if __name__ == "__main__":
    main()
