from __future__ import annotations

import math
import os
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mlops.drain import Delivery, Drain, Part, ServerFaultError
from mlops.errors import TrackingError
from mlops.journal import Journal, find_journals
from mlops.mlflow_sink import MlflowSink
from mlops.mlflow_store import ensure_experiment, open_client, open_store_client
from mlops.run_lookup import N_KNOWN, Recent
from mlops.settings import Settings
from mlops.tracking import RUN_KEY, Run, RunDataset, new_run_key
from tests.conftest import Tracking

DATASET = RunDataset("digits", "a" * 64, "sklearn", "training", {"train": 1000, "split_seed": 0})
WRITES = frozenset(
    (
        "create_run",
        "create_experiment",
        "create_registered_model",
        "create_model_version",
        "log_artifact",
        "log_batch",
        "log_inputs",
        "set_tag",
        "set_terminated",
        "update_run",
    )
)


class FlakyClient:
    """A client of a real store whose writes fail as `faults` say: "before" or "after" they apply.

    "twin" is a hung server: the creation that failed is done later, after the next search.
    """

    def __init__(self, client: Any, faults: Iterable[str]) -> None:
        self.calls: list[str] = []
        self._client = client
        self._faults = iter(faults)
        self._late: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            fault = next(self._faults, "") if name in WRITES else ""
            if fault == "twin" and name == "create_run":
                self._late.append(lambda: method(*args, **kwargs))
            if fault in ("before", "twin"):
                raise ConnectionError("no answer")
            result = method(*args, **kwargs)
            if fault == "after":
                raise TimeoutError("the answer was lost")
            while name == "search_runs" and self._late:
                self._late.pop()()
            return result

        return call if callable(method) else method


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "home"


@pytest.fixture(scope="module")
def store(home: Path) -> Any:
    """A client of an embedded store without a server; opening a fresh one takes seconds."""
    return open_store_client(Settings.from_env({"MLOPS_HOME": str(home)}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sweep"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    with Journal(folder, "test") as journal:
        yield journal


def deliver(client: Any, folder: Path, at_most: int = 60) -> MlflowSink:
    """Delivers a folder's journals; each failure is a crash of the drain."""
    sink = MlflowSink(client)
    for _ in range(at_most):
        delivery = Delivery(folder, lambda sink=sink: sink)  # type: ignore[misc]
        while delivery.run_pass():
            pass
        if not delivery.problems:
            return sink
        sink = MlflowSink(client, refused=sink.refused)
    raise AssertionError(delivery.problems)


def write_model(place: Path) -> Path:
    model = place / "model"
    (model / "data").mkdir(parents=True)
    for name in ("MLmodel", "data/model.keras", "requirements.txt"):
        (model / name).write_text(name)
    return model


def write_run(journal: Journal, place: Path, *, name: str = "cnn-000", **create: Any) -> Run:
    """A run with something of everything; `place` is where its files are made."""
    run = Run.create(
        journal,
        experiment="digits",
        name=name,
        params={"lr": 0.1, "units": 64},
        tags={"mlops.seed": "7"},
        dataset=DATASET,
        **create,
    )
    for epoch in range(3):
        run.log_metrics({"loss": 1.0 / (1 + epoch), "val_accuracy": epoch / 3}, step=epoch)
    run.set_tags({"mlops.weights_sha256": "abc"})
    note = place / "note.txt"
    note.write_text("a note")
    run.log_artifact(note, "notes")
    run.register_candidate("digits-classifier", write_model(place), {"mlops.value": "0.98"})
    run.end("FINISHED")
    return run


def get_run(client: Any, run: Run) -> Any:
    """Returns the one run with a key that is not deleted."""
    experiment = client.get_experiment_by_name("digits").experiment_id
    (found,) = client.search_runs([experiment], f"tags.`{RUN_KEY}` = '{run.key}'")
    return found


def points(client: Any, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(p.step, p.value) for p in client.get_metric_history(run_id, metric)]


def list_files(client: Any, run_id: str, path: str = "") -> set[str]:
    found: set[str] = set()
    for file in client.list_artifacts(run_id, path or None):
        found |= list_files(client, run_id, file.path) if file.is_dir else {file.path}
    return found


def assert_whole(client: Any, run: Run) -> None:
    """Asserts that what `write_run` wrote is there, each thing exactly once."""
    found = get_run(client, run)
    run_id = found.info.run_id
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1", "units": "64"}
    own = {k: v for k, v in found.data.tags.items() if k.startswith("mlops.")}
    assert own == {RUN_KEY: run.key, "mlops.seed": "7", "mlops.weights_sha256": "abc"}
    assert points(client, run_id, "loss") == [(0, 1.0), (1, 1 / 2), (2, 1 / 3)]
    assert points(client, run_id, "val_accuracy") == [(0, 0.0), (1, 1 / 3), (2, 2 / 3)]
    assert [i.dataset.name for i in found.inputs.dataset_inputs] == ["digits"]
    model = {"model/MLmodel", "model/data/model.keras", "model/requirements.txt"}
    assert list_files(client, run_id) == {"notes/note.txt", *model}
    (version,) = client.search_model_versions(f"run_id = '{run_id}'")
    assert version.name == "digits-classifier-candidates"
    assert version.source == f"runs:/{run_id}/model"
    assert version.tags == {"mlops.value": "0.98"}


def test_a_run_arrives_whole_at_a_server(tracking: Tracking, journal: Journal) -> None:
    client = open_client(tracking.url)
    with tempfile.TemporaryDirectory() as place:
        run = write_run(journal, Path(place))
    sink = deliver(client, journal.folder)
    assert_whole(client, run)
    assert sink.refused == []
    assert sink.run_ids == {run.key: get_run(client, run).info.run_id}
    assert sink.versions[run.key] >= 1
    assert sink.experiment_ids == {"digits": get_run(client, run).info.experiment_id}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_reached_past_the_proxy_of_the_environment(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    open_client("http://tracking.example:5000")
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == ("", "intranet.example")
    for _ in range(2):
        client = open_client(tracking.url.replace("127.0.0.1", host))
        assert client.get_experiment("0").name == "Default"
        expected = f"intranet.example,{host}"
        assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == (expected, expected)


def test_the_store_opened_directly_keeps_artifacts_where_the_server_does(
    store: Any, home: Path, journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(journal, tmp_path)
    deliver(store, journal.folder)
    assert_whole(store, run)
    place = Path(get_run(store, run).info.artifact_uri)
    assert home / "artifacts" in place.parents
    assert (place / "notes" / "note.txt").read_text() == "a note"
    assert not (tmp_path / "mlruns").exists() and not (tmp_path / "mlflow.db").exists()
    default = store.get_experiment("0").artifact_location
    assert Path(default.removeprefix("file://")) == home / "artifacts" / "0"


# No shrinking: each try takes half a second.
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    st.lists(
        st.sampled_from(["", "", "", "before", "after", "after", "twin"]), min_size=4, max_size=25
    )
)
def test_whatever_fails_each_run_point_tag_and_version_is_there_exactly_once(
    store: Any, faults: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        with Journal(Path(scratch) / "sweep", "test") as journal:
            run = write_run(journal, Path(scratch))
        sink = deliver(FlakyClient(store, faults), journal.folder)
        assert_whole(store, run)
        assert sink.refused == []
        assert find_journals(journal.folder) == []


def test_a_run_that_a_hung_server_makes_twice_is_one_in_the_end(
    store: Any, journal: Journal
) -> None:
    run = Run.create(journal, experiment="digits", name="twin", params={"lr": 1})
    ensure_experiment(store, "digits")
    run.end("FINISHED")
    deliver(FlakyClient(store, ["twin"]), journal.folder)
    assert get_run(store, run).data.params == {"lr": "1"}
    assert get_run(store, run).info.status == "FINISHED"


def test_times_are_those_of_the_call_not_of_the_delivery(store: Any, journal: Journal) -> None:
    before = time.time_ns() // 1_000_000
    run = Run.create(journal, experiment="digits", name="timed")
    run.log_metrics({"loss": 1.0}, step=0)
    run.end("FINISHED")
    after = time.time_ns() // 1_000_000
    time.sleep(0.05)
    deliver(FlakyClient(store, ["", "after", "after", "after"]), journal.folder)
    found = get_run(store, run)
    (point,) = store.get_metric_history(found.info.run_id, "loss")
    for at_ms in (found.info.start_time, point.timestamp, found.info.end_time):
        assert before <= at_ms <= after


def test_more_than_a_call_may_carry_arrives_whole(tracking: Tracking, journal: Journal) -> None:
    client = open_client(tracking.url)
    params = {f"p{n}": n for n in range(250)}
    run = Run.create(journal, experiment="digits", name="many", params=params)
    run.set_tags({f"t{n}": str(n) for n in range(250)})
    for step in range(3):
        run.log_metrics({f"m{n}": n for n in range(700)}, step=step)
    sink = deliver(client, journal.folder)
    found = get_run(client, run)
    assert sink.refused == []
    assert found.data.params == {k: str(v) for k, v in params.items()}
    assert len([k for k in found.data.tags if k.startswith("t")]) == 250
    assert len(found.data.metrics) == 700
    assert points(client, found.info.run_id, "m5") == [(0, 5.0), (1, 5.0), (2, 5.0)]


def test_a_value_that_is_too_long_is_cut_and_says_so(tracking: Tracking, journal: Journal) -> None:
    client = open_client(tracking.url)
    run = Run.create(journal, experiment="digits", name="long", params={"space": "x" * 7000})
    run.set_tags({"note": "y" * 9000, "odd": "a\0b\ud800c"})
    sink = deliver(client, journal.folder)
    data = get_run(client, run).data
    assert sink.refused == []
    assert len(data.params["space"]) == 6000
    assert data.params["space"].endswith("x... (cut: 7000 characters)")
    assert data.tags["note"].endswith("y... (cut: 9000 characters)")
    assert data.tags["odd"] == "a\ufffdb?c"


def test_numbers_that_are_none_are_shown_as_nan_and_stored_once(
    tracking: Tracking, journal: Journal
) -> None:
    client = open_client(tracking.url)
    run = Run.create(journal, experiment="digits", name="nan")
    for step, value in enumerate((math.nan, math.inf, -math.inf)):
        run.log_metrics({"loss": value}, step=step)
    deliver(FlakyClient(client, ["", "after", "after"]), journal.folder)
    found = points(client, get_run(client, run).info.run_id, "loss")
    assert [step for step, _ in found] == [0, 1, 2]
    assert all(math.isnan(value) for _, value in found)


@pytest.mark.parametrize("direct", [True, False])
def test_what_is_refused_for_good_is_left_out_alone_and_said_once(
    tracking: Tracking, store: Any, journal: Journal, direct: bool
) -> None:
    client = store if direct else open_client(tracking.url)
    bad = "acc@k"
    run = Run.create(
        journal,
        experiment="digits",
        name="refused",
        params={bad: 1, "lr": 2},
        tags={bad: "x", "mlops.good": "y"},
    )
    for step in range(2):
        run.log_metrics({bad: 1.0, "loss": 2.0}, step=step)
    run.set_tags({bad: "x", "mlops.later": "z"})
    run.end("FINISHED")
    sink = deliver(FlakyClient(client, ["", "", "", "after"]), journal.folder)
    found = get_run(client, run)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "2"}
    assert found.data.tags["mlops.good"] == "y" and found.data.tags["mlops.later"] == "z"
    assert points(client, found.info.run_id, "loss") == [(0, 2.0), (1, 2.0)]
    whats = [sentence.split(" of run")[0] for sentence in sink.refused]
    assert whats == [f"tag '{bad}'", f"param '{bad}'", f"metric '{bad}'"] or sorted(whats) == [
        f"metric '{bad}'",
        f"param '{bad}'",
        f"tag '{bad}'",
    ]


def test_records_of_a_run_that_was_deleted_do_not_block_the_others(
    store: Any, folder: Path
) -> None:
    with Journal(folder, "first") as journal:
        gone = Run.create(journal, experiment="digits", name="gone")
        sink = deliver(store, folder)
        store.delete_run(sink.run_ids[gone.key])
        gone.log_metrics({"loss": 1.0}, step=0)
        gone.end("FINISHED")
        other = Run.create(journal, experiment="digits", name="other")
        sink = deliver(store, folder)
    assert len(sink.refused) >= 1
    assert get_run(store, other).info.status == "RUNNING"


def test_a_child_waits_for_its_parent_in_another_journal(store: Any, folder: Path) -> None:
    key = new_run_key()
    with Journal(folder, "child") as journal:
        child = Run.create(
            journal, experiment="digits", name="child", tags={"mlflow.parentRunId": key}
        )
        child.log_metrics({"loss": 1.0}, step=0)
    with Journal(folder, "parent") as journal:
        parent = Run.create(journal, experiment="digits", name="parent", key=key)
    deliver(store, folder)
    found = get_run(store, child)
    assert found.data.tags["mlflow.parentRunId"] == get_run(store, parent).info.run_id
    assert found.data.metrics == {"loss": 1.0}


def test_a_run_whose_parent_nobody_knows_is_made_without_and_that_is_said(
    store: Any, journal: Journal
) -> None:
    tags = {"mlflow.parentRunId": new_run_key()}
    run = Run.create(journal, experiment="digits", name="orphan", tags=tags)
    sink = deliver(store, journal.folder)
    assert "mlflow.parentRunId" not in get_run(store, run).data.tags
    (sentence,) = sink.refused
    assert sentence == (f"parent of run {run.key}: no run {tags['mlflow.parentRunId']} is known")


def test_records_of_a_run_that_nobody_created_are_left_out_and_named_once(
    store: Any, journal: Journal
) -> None:
    lost = Run(journal, new_run_key())
    for step in range(20):
        lost.log_metrics({"loss": 1.0}, step=step)
    lost.end("FINISHED")
    other = Run.create(journal, experiment="digits", name="after")
    client = FlakyClient(store, [])
    sink = deliver(client, journal.folder)
    assert get_run(store, other)
    assert [s.split(" of run")[0] for s in sink.refused] == ["end", "metrics and tags"] or [
        s.split(" of run")[0] for s in sink.refused
    ] == ["metrics and tags", "end"]
    assert client.calls.count("search_runs") < 10


def test_a_deleted_experiment_waits_until_it_is_restored(store: Any, journal: Journal) -> None:
    experiment_id = ensure_experiment(store, "given away")
    sink = MlflowSink(store)
    delivery = Delivery(journal.folder, lambda: sink)
    Run.create(journal, experiment="given away", name="a")
    assert delivery.run_pass()
    store.delete_experiment(experiment_id)
    Run.create(journal, experiment="given away", name="b")
    assert not delivery.run_pass()
    assert "is deleted" in delivery.problems[0] and sink.refused == []
    store.restore_experiment(experiment_id)
    assert delivery.run_pass()
    names = {run.info.run_name for run in store.search_runs([experiment_id])}
    assert names == {"a", "b"}


def test_an_experiment_made_by_two_at_once_is_one(store: Any, tracking: Tracking) -> None:
    for client, name in ((store, "race direct"), (open_client(tracking.url), "race served")):
        found: list[str] = []
        barrier = threading.Barrier(4)

        def create(client: Any = client, name: str = name, found: list[str] = found) -> None:
            barrier.wait()  # noqa: B023
            found.append(ensure_experiment(client, name))

        threads = [threading.Thread(target=create) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4 and len(set(found)) == 1


def test_an_experiment_that_no_server_takes_is_an_error_and_waits(store: Any) -> None:
    with pytest.raises(TrackingError, match="cannot be made"):
        ensure_experiment(store, "x" * 600)


def test_of_two_ends_the_later_one_counts_in_whatever_order_they_arrive(
    store: Any, folder: Path
) -> None:
    with Journal(folder, "driver") as driver, Journal(folder, "worker") as worker:
        run = Run.create(driver, experiment="digits", name="died")
        Run(worker, run.key).end("FINISHED")  # and then it died before it could answer
        time.sleep(0.002)
        run.end("FAILED")
    deliver(store, folder)
    assert get_run(store, run).info.status == "FAILED"


def test_a_run_that_is_opened_again_is_running_and_can_end_again(
    store: Any, journal: Journal
) -> None:
    run = Run.create(journal, experiment="digits", name="resumed")
    run.end("KILLED")
    deliver(store, journal.folder)
    run.end("RUNNING")
    deliver(store, journal.folder)
    assert get_run(store, run).info.status == "RUNNING"
    run.end("FINISHED")
    deliver(store, journal.folder)
    assert get_run(store, run).info.status == "FINISHED"


def test_a_model_packaged_anew_leaves_the_bytes_of_its_version_alone(
    store: Any, journal: Journal, tmp_path: Path
) -> None:
    run = Run.create(journal, experiment="digits", name="again")
    model = write_model(tmp_path)
    run.register_candidate("again", model, {})
    deliver(store, journal.folder)
    (model / "MLmodel").write_text("other bytes")
    run.register_candidate("again", model, {})
    sink = deliver(store, journal.folder)
    run_id = sink.run_ids[run.key]
    copy = Path(store.download_artifacts(run_id, "model/MLmodel", str(tmp_path)))
    assert copy.read_text() == "MLmodel"
    assert len(store.search_model_versions(f"run_id = '{run_id}'")) == 1
    assert sink.versions == {run.key: 1}


def test_a_model_whose_upload_was_cut_short_is_uploaded_whole(
    store: Any, journal: Journal, tmp_path: Path
) -> None:
    run = Run.create(journal, experiment="digits", name="cut")
    run.register_candidate("cut", write_model(tmp_path), {})
    deliver(FlakyClient(store, ["", "", "before", "", "before", "", "", "before"]), journal.folder)
    files = list_files(store, get_run(store, run).info.run_id)
    assert files == {"model/MLmodel", "model/data/model.keras", "model/requirements.txt"}


def test_a_model_whose_manifest_is_empty_is_uploaded_whole(
    store: Any, journal: Journal, tmp_path: Path
) -> None:
    run = Run.create(journal, experiment="digits", name="empty")
    run_id = deliver(store, journal.folder).run_ids[run.key]
    (tmp_path / "MLmodel").touch()
    store.log_artifact(run_id, str(tmp_path / "MLmodel"), "model")
    run.register_candidate("empty", write_model(tmp_path), {})
    deliver(store, journal.folder)
    files = list_files(store, run_id)
    assert files == {"model/MLmodel", "model/data/model.keras", "model/requirements.txt"}
    assert Path(store.download_artifacts(run_id, "model/MLmodel")).read_text() == "MLmodel"


def test_an_input_that_another_writers_first_one_took_away_is_logged_again(
    store: Any, journal: Journal
) -> None:
    run = Run.create(journal, experiment="digits", name="first", dataset=DATASET)
    sink = MlflowSink(store)
    delivery = Delivery(journal.folder, lambda: sink)
    assert delivery.run_pass()
    run_id = sink.run_ids[run.key]
    # As MLflow leaves it where two writers are the first: the dataset has the other one's id.
    with sqlite3.connect(store.tracking_uri.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE datasets SET dataset_uuid = 'another'")
    assert not store.get_run(run_id).inputs.dataset_inputs
    run.end("FINISHED")
    assert delivery.run_pass()
    (found,) = store.get_run(run_id).inputs.dataset_inputs
    assert found.dataset.name == DATASET.name


def of_others(folder: Path, tmp_path: Path) -> list[str]:
    """Places that a journal may name, and that hold no copies of its own."""
    secret = tmp_path / "secrets" / "key.pem"
    secret.parent.mkdir()
    secret.write_text("secret")
    spool = folder / "driver.files"
    for place in ("linked", "holds"):
        (spool / place).mkdir(parents=True)
    (spool / "linked" / "key.pem").symlink_to(secret)
    (spool / "holds" / "folder").mkdir()
    (spool / "holds" / "folder" / "key.pem").symlink_to(secret)
    (folder / "folder.files").symlink_to(secret.parent.parent)
    return [
        str(secret),
        "../../secrets/key.pem",
        "driver.files/../key.pem",
        "a/b.files/key.pem",
        "driver.files/linked/key.pem",
        "driver.files/holds/folder",
        "folder.files/secrets/key.pem",
        "driver.files",
        "",
    ]


def test_what_a_journal_names_and_is_no_copy_of_its_own_is_neither_sent_nor_removed(
    store: Any, journal: Journal, folder: Path, tmp_path: Path
) -> None:
    run = Run.create(journal, experiment="digits", name="loot", key=new_run_key())
    places = of_others(folder, tmp_path)
    for place in places:
        journal.append("artifact", run.key, spooled=place, folder="loot")
    run.end("FINISHED")
    journal.close()
    sink = deliver(store, folder)
    assert list_files(store, get_run(store, run).info.run_id) == set()
    assert any("no copy that was made beside the journal" in one for one in sink.refused)
    assert (tmp_path / "secrets" / "key.pem").read_text() == "secret"
    assert get_run(store, run).info.status == "FINISHED"


def test_a_journal_makes_nothing_where_promotions_write(
    store: Any, journal: Journal, folder: Path, tmp_path: Path
) -> None:
    run = Run.create(journal, experiment="digits-releases", name="squat", key=new_run_key())
    run.end("FINISHED")
    own = Run.create(journal, experiment="others", name="own", key=new_run_key())
    spooled = journal.spool(write_model(tmp_path / "model"))
    journal.append("candidate", own.key, spooled=spooled, folder="model", name="digits", tags={})
    own.end("FINISHED")
    journal.close()
    sink = deliver(store, folder)
    assert store.get_experiment_by_name("digits-releases") is None
    assert [one.name for one in store.search_registered_models("name = 'digits'")] == []
    said = " ".join(sink.refused)
    assert "hold what promotions make" in said and "is named ...-candidates" in said


def test_an_artifact_whose_copy_is_gone_undelivered_is_said_so(
    store: Any, journal: Journal, tmp_path: Path
) -> None:
    sink = MlflowSink(store)
    delivery = Delivery(journal.folder, lambda: sink)
    run = Run.create(journal, experiment="digits", name="lost file")
    assert delivery.run_pass()
    (tmp_path / "note.txt").write_text("a note")
    run.log_artifact(tmp_path / "note.txt")
    shutil.rmtree(journal.path.with_suffix(".files"))
    assert delivery.run_pass()
    assert sink.refused == [
        f"artifact of run {run.key}: its copy 'note.txt' beside the journal is gone"
    ]


def test_names_with_quotes_pass(store: Any, journal: Journal, tmp_path: Path) -> None:
    run = Run.create(journal, experiment='it\'s "digits"', name="o'neill", params={"a": "'`\""})
    run.register_candidate("it's", write_model(tmp_path), {})
    sink = deliver(store, journal.folder)
    assert sink.refused == []
    found = store.get_run(sink.run_ids[run.key])
    assert found.data.params == {"a": "'`\""}


def test_a_server_that_is_not_there_costs_no_record(journal: Journal) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets the port
        url = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        Run.create(journal, experiment="digits", name="waits").end("FINISHED")
        delivery = Delivery(journal.folder, lambda: MlflowSink(open_client(url)))
        while delivery.run_pass():
            pass
    assert delivery.unreachable
    assert "secret" not in delivery.problems[0]


def test_a_server_that_hangs_lets_flush_return_in_time(journal: Journal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        Run.create(journal, experiment="digits", name="waits").end("FINISHED")
        drain = Drain(journal.folder, lambda: MlflowSink(open_client(url))).start()
        began = time.monotonic()
        assert drain.flush(1.0) == 2
        assert time.monotonic() - began < 2.0


def test_metrics_are_there_while_the_run_goes_on(tracking: Tracking, journal: Journal) -> None:
    client = open_client(tracking.url)
    drain = Drain(journal.folder, lambda: MlflowSink(client)).start()
    run = Run.create(journal, experiment="digits", name="live")
    run.log_metrics({"loss": 1.0}, step=0)
    deadline = time.monotonic() + 20
    while drain.undelivered():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    found = get_run(client, run)
    assert found.info.status == "RUNNING" and found.data.metrics == {"loss": 1.0}
    drain.stop(5.0)


def write_trials(folder: Path, count: int) -> list[Run]:
    """Trials as a sweep writes them: begun in the driver's journal, logged in one of their own."""
    trials = []
    with Journal(folder, "driver") as driver:
        for number in range(count):
            run = Run.create(
                driver, experiment="digits", name=f"t{number}", params={"lr": 1}, dataset=DATASET
            )
            with Journal(folder, f"trial{number}") as worker:
                theirs = Run(worker, run.key)
                theirs.log_metrics({"loss": 1.0}, step=0)
                theirs.set_tags({"mlops.note": str(number)})
                theirs.end("FINISHED")
            trials.append(run)
    return trials


def test_a_trial_takes_four_requests_its_params_and_metrics_go_out_together(
    store: Any, folder: Path
) -> None:
    ensure_experiment(store, "digits")
    client = FlakyClient(store, [])
    delivery = Delivery(folder, lambda: sink)
    with Journal(folder, "first"):
        # A drain that lives since the sweep began: nothing is doubtful.
        sink = MlflowSink(client, doubtful_input_s=0.0)
        delivery.run_pass()
        trials = write_trials(folder, 5)
        client.calls.clear()
        while delivery.run_pass():
            pass
    assert Counter(client.calls) == {
        "get_experiment_by_name": 1,
        "create_run": 5,
        "log_inputs": 5,
        "log_batch": 5,
        "set_terminated": 5,
        # The drain saw the driver's journal whole at first: another might have sent of it.
        "search_runs": client.calls.count("search_runs"),
        "search_experiments": client.calls.count("search_experiments"),
    }
    assert client.calls.count("search_runs") <= 3
    for number, run in enumerate(trials):
        found = get_run(store, run)
        assert found.info.status == "FINISHED"
        assert (found.data.params, found.data.metrics) == ({"lr": "1"}, {"loss": 1.0})
        assert found.data.tags["mlops.note"] == str(number)


def test_two_that_are_the_first_with_a_dataset_log_it_one_after_the_other(
    store: Any, tmp_path: Path
) -> None:
    """Of two at once MLflow would keep one's input: the other's leads nowhere then."""

    class Slow(FlakyClient):
        under_way = 0
        most = 0

        def log_inputs(self, *args: Any) -> None:
            Slow.under_way += 1
            Slow.most = max(Slow.most, Slow.under_way)
            time.sleep(0.2)
            Slow.under_way -= 1
            store.log_inputs(*args)

    ensure_experiment(store, "digits")
    runs = []
    threads = []
    for number in range(3):
        folder = tmp_path / str(number)
        with Journal(folder, "first") as journal:
            run = Run.create(journal, experiment="digits", name=f"first {number}", dataset=DATASET)
            run.end("FINISHED")
            runs.append(run)
        threads.append(threading.Thread(target=deliver, args=(Slow(store, []), folder)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Slow.most == 1
    for run in runs:
        assert len(get_run(store, run).inputs.dataset_inputs) == 1


def test_what_a_dead_drain_may_have_sent_is_looked_up_at_once(store: Any, folder: Path) -> None:
    trials = write_trials(folder, 12)
    # It died before it noted what it sent: half of the creations are there.
    lost = FlakyClient(store, [""] * 12 + ["after"] * 1000)
    Delivery(folder, lambda: MlflowSink(lost)).run_pass()
    for path in folder.glob("*.sent"):
        path.unlink()
    client = FlakyClient(store, [])
    deliver(client, folder)
    n_before = lost.calls.count("create_run")
    assert 3 < n_before < 12
    assert client.calls.count("create_run") == 12 - n_before
    assert client.calls.count("search_runs") <= n_before + 3  # not one for each that is new
    for run in trials:
        assert get_run(store, run).data.params == {"lr": "1"}


def test_many_trials_that_wait_for_their_creation_ask_no_server(store: Any, folder: Path) -> None:
    class Slow(MlflowSink):
        def deliver(self, folder: Path, part: Part) -> None:
            if len(part.records) > 10:  # the driver's: two at a time
                del part.records[2:]
            super().deliver(folder, part)

    trials = write_trials(folder, 12)
    client = FlakyClient(store, [])
    sink = Slow(client)
    delivery = Delivery(folder, lambda: sink)
    assert delivery.run_pass() and delivery.problems == []
    n_searched = client.calls.count("search_runs")
    assert n_searched <= 4
    while delivery.run_pass():
        assert delivery.problems == []
    assert client.calls.count("search_runs") <= n_searched + 30
    assert all(get_run(store, run).info.status == "FINISHED" for run in trials)


def test_what_a_server_cannot_take_of_a_worker_does_not_hold_up_the_driver(
    store: Any, folder: Path
) -> None:
    class Poisoned(FlakyClient):
        def log_batch(self, run_id: str, **items: Any) -> None:
            if any(metric.key == "poison" for metric in items["metrics"]):
                raise ServerFaultError("a bug of the server")
            store.log_batch(run_id, **items)

    with Journal(folder, "driver") as driver:
        bad = Run.create(driver, experiment="digits", name="bad", params={"lr": 1})
        good = Run.create(driver, experiment="digits", name="good", params={"lr": 2})
        for run, name in ((bad, "poison"), (good, "loss")):
            with Journal(folder, name) as worker:
                Run(worker, run.key).log_metrics({name: 1.0}, step=0)
    delivery = Delivery(folder, lambda: sink)
    sink = MlflowSink(Poisoned(store, []))
    while delivery.run_pass():
        pass
    assert [path.name.split("-")[1] for path in find_journals(folder)] == ["poison"]
    assert delivery.problems == ["a bug of the server"]
    assert get_run(store, bad).data.params == {"lr": "1"}
    assert get_run(store, good).data.metrics == {"loss": 1.0}


def test_of_two_ends_in_one_journal_the_later_counts_without_asking(
    store: Any, journal: Journal
) -> None:
    run = Run.create(journal, experiment="digits", name="ends")
    run.end("FINISHED")
    journal.append("end", run.key, at_ms=1, status="FAILED")
    client = FlakyClient(store, [])
    deliver(client, journal.folder)
    assert get_run(store, run).info.status == "FINISHED"
    assert client.calls.count("get_run") == 0


def test_what_is_known_of_runs_is_bounded_and_looked_up_again(store: Any, journal: Journal) -> None:
    known: Recent[int] = Recent()
    for number in range(N_KNOWN + 5):
        known[str(number)] = number
    known["7"] = 7
    assert len(known) == N_KNOWN and "4" not in known and "5" in known
    sink = MlflowSink(store)
    delivery = Delivery(journal.folder, lambda: sink)
    run = Run.create(journal, experiment="digits", name="forgotten")
    delivery.run_pass()
    for forgotten in (sink.run_ids, sink._single, sink._ends):
        forgotten.clear()
    run.log_metrics({"loss": 1.0}, step=0)
    run.end("FINISHED")
    delivery.run_pass()
    assert get_run(store, run).info.status == "FINISHED"
    assert get_run(store, run).data.metrics == {"loss": 1.0}
