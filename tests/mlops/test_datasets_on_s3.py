"""Datasets on a real SeaweedFS: what other machines see, and what a crash leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlops.data import Dataset, load_dataset
from mlops.dataset_store import ARRAYS, RECORD, DatasetStore, open_dataset_store
from mlops.doctor import examine
from mlops.errors import DataError, MlopsError
from mlops.objects import Object, Objects, open_objects
from mlops.settings import Settings
from mlops.stores.stored_datasets import StoredDatasets
from tests.mlops.table_files import DIGITS, labels_of, rows_of, save
from tests.object_store import SECRET, ObjectStore, open_object_store, use

NAMES = [f"{DIGITS}/{name}" for name in sorted([*ARRAYS, RECORD])]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with open_object_store(tmp_path_factory.mktemp("seaweed"), "datasets") as server:
        yield server


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


Host = Callable[[str], Settings]


@pytest.fixture
def host(server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Makes the settings of a machine with a home of its own; all use one part of the bucket."""
    use(monkeypatch, server.env())

    def make(name: str) -> Settings:
        home = str(tmp_path / name)
        url = f"s3://datasets/{tmp_path.name}"
        return Settings.from_env({"MLOPS_HOME": home, "MLOPS_DATASETS_URL": url})

    return make


def there(settings: Settings) -> Objects:
    return open_objects(settings.datasets_url)


def names(settings: Settings) -> list[str]:
    return [one.name for one in there(settings).list()]


def test_what_one_machine_stores_another_one_has(host: Host, digits: Dataset) -> None:
    one, other = open_dataset_store(host("one")), open_dataset_store(host("other"))
    assert not other.has(DIGITS)
    with pytest.raises(DataError, match=r"'s3://datasets/.*' has no dataset"):
        other.get(DIGITS)
    one.put(digits)
    assert names(host("one")) == NAMES
    assert one.has(DIGITS) and other.has(DIGITS)
    assert one.list() == other.list() == (DIGITS,)
    assert not other.folder.exists()
    back = other.get(DIGITS)
    assert (back.x == digits.x).all() and (back.split == digits.split).all()
    assert [path.name for path in other.folder.iterdir()] == [DIGITS]


def test_a_copy_that_is_here_is_read_though_s3_is_away(host: Host, digits: Dataset) -> None:
    settings = host("one")
    open_dataset_store(settings).put(digits)
    away = DatasetStore(settings.datasets_folder, open_objects("s3://absent"))
    assert away.get(DIGITS).fingerprint == DIGITS
    assert away.has(DIGITS)
    with pytest.raises(MlopsError, match="has no bucket"):
        away.put(digits)  # what S3 does not have is not stored
    with pytest.raises(MlopsError, match="has no bucket"):
        away.has("0" * 64)


def test_a_second_put_writes_nothing(host: Host, digits: Dataset) -> None:
    open_dataset_store(host("one")).put(digits)
    before = list(there(host("one")).list())
    open_dataset_store(host("one")).put(digits)
    open_dataset_store(host("other")).put(digits)
    assert list(there(host("one")).list()) == before


class KilledError(Exception):
    """Stands for the end of a process, between two requests."""


class Failing:
    """Objects whose uploads end after some: what a killed process leaves on S3."""

    def __init__(self, objects: Objects, n_uploads: int) -> None:
        self.objects = objects
        self.left = n_uploads
        self.url = objects.url

    def list(self, prefix: str = "") -> Iterator[Object]:
        return self.objects.list(prefix)

    def read(self, name: str) -> bytes:
        return self.objects.read(name)

    def download(self, name: str, path: Path) -> None:
        self.objects.download(name, path)

    def upload(self, path: Path, name: str) -> None:
        if self.left == 0:
            raise KilledError
        self.left -= 1
        self.objects.upload(path, name)

    def delete(self, names: Iterable[str]) -> None:
        self.objects.delete(names)

    def delete_unfinished(self, folder: str) -> None:
        self.objects.delete_unfinished(folder)


@pytest.mark.parametrize("n_uploads", [0, 1, 2, 3])
def test_an_upload_that_was_killed_is_no_dataset_and_the_next_put_completes_it(
    host: Host, digits: Dataset, n_uploads: int
) -> None:
    settings = host("one")
    store = DatasetStore(settings.datasets_folder, Failing(there(settings), n_uploads))
    with pytest.raises(KilledError):
        store.put(digits)
    assert len(names(settings)) == n_uploads
    other = open_dataset_store(host("other"))
    assert not other.has(DIGITS) and other.list() == ()
    with pytest.raises(DataError, match="has no dataset"):
        other.get(DIGITS)
    assert list(other.folder.glob("*")) == list(other.folder.glob(".writing-*")) == []
    open_dataset_store(settings).put(digits)
    assert names(settings) == NAMES
    assert other.get(DIGITS).fingerprint == DIGITS


PUT = """
import os, sys
from mlops.data import load_dataset
from mlops.dataset_store import open_dataset_store
from mlops.settings import Settings
dataset, store = load_dataset(sys.argv[1]), open_dataset_store(Settings.from_env())
print("ready", flush=True)
sys.stdin.readline()
store.put(dataset)
"""


def test_a_process_killed_while_it_uploads_leaves_no_dataset(
    host: Host, server: ObjectStore, tmp_path: Path
) -> None:
    big = save(tmp_path / "big.npz", x=rows_of((2_000,), n=5_000), y=labels_of(5_000))
    fingerprint = load_dataset(big).fingerprint
    settings = host("one")
    env = {**os.environ, "MLOPS_HOME": str(settings.home), "PYTHONPATH": str(Path.cwd())}
    env |= {"MLOPS_DATASETS_URL": settings.datasets_url}
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", PUT, big], env=env, stdin=pipe, stdout=pipe)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdin.write(b"\n")
    process.stdin.flush()
    client, begun = server.client(), []
    while not begun and process.poll() is None:  # the first of its parts is on the way
        begun = client.list_multipart_uploads(Bucket="datasets").get("Uploads", [])
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert begun, "it was done before it could be killed"
    store = open_dataset_store(host("other"))
    assert not store.has(fingerprint) and store.list() == ()
    open_dataset_store(settings).put(load_dataset(big))
    assert store.get(fingerprint).x.shape == (5_000, 2_000)
    store.remove(fingerprint)
    assert client.list_multipart_uploads(Bucket="datasets").get("Uploads", []) == []


GET = """
import sys
from mlops.dataset_store import open_dataset_store
from mlops.settings import Settings
store = open_dataset_store(Settings.from_env())
print("ready", flush=True)
sys.stdin.readline()
print(store.get(sys.argv[1]).x.shape)
"""


def test_several_processes_and_machines_fetch_at_once(host: Host, digits: Dataset) -> None:
    open_dataset_store(host("one")).put(digits)
    pipe = subprocess.PIPE
    racers = []
    for name in ("a", "a", "b"):
        settings = host(name)
        env = {**os.environ, "MLOPS_HOME": str(settings.home), "PYTHONPATH": str(Path.cwd())}
        env |= {"MLOPS_DATASETS_URL": settings.datasets_url}
        command = [sys.executable, "-c", GET, DIGITS]
        racers.append(subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True))
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    assert [racer.communicate(timeout=60)[0] for racer in racers] == ["(1797, 8, 8, 1)\n"] * 3
    for name in ("a", "b"):
        folder = host(name).datasets_folder
        assert [path.name for path in folder.iterdir()] == [DIGITS]


def test_what_comes_damaged_from_s3_is_not_kept(
    host: Host, digits: Dataset, tmp_path: Path
) -> None:
    settings, other = host("one"), open_dataset_store(host("other"))
    open_dataset_store(settings).put(digits)
    y = tmp_path / "y.npy"
    shutil.copy(settings.datasets_folder / DIGITS / "y.npy", y)
    content = bytearray(y.read_bytes())
    content[-8] ^= 1  # another label, in a file of the same shape
    y.write_bytes(content)
    there(settings).upload(y, f"{DIGITS}/y.npy")
    with pytest.raises(DataError, match=r"came damaged from s3://.*SHA-256 of y.npy; expected"):
        other.get(DIGITS)
    assert list(other.folder.iterdir()) == []
    assert open_dataset_store(settings).get(DIGITS).fingerprint == DIGITS


def test_a_damaged_copy_is_not_uploaded(host: Host, digits: Dataset) -> None:
    settings = host("one")
    DatasetStore(settings.datasets_folder).put(digits)
    path = settings.datasets_folder / DIGITS / "x.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged.*SHA-256 of x.npy"):
        open_dataset_store(settings).put(digits)
    assert names(settings) == []


def test_a_dataset_that_an_older_version_wrote_is_uploaded_and_fetched(
    host: Host, digits: Dataset
) -> None:
    settings = host("one")
    DatasetStore(settings.datasets_folder).put(digits)
    path = settings.datasets_folder / DIGITS / RECORD
    record = json.loads(path.read_text())
    del record["sha256"]
    path.write_text(json.dumps(record))
    open_dataset_store(settings).put(digits)
    assert open_dataset_store(host("other")).get(DIGITS).fingerprint == DIGITS


def test_a_dataset_that_lost_a_file_on_s3_is_stored_again(host: Host, digits: Dataset) -> None:
    settings = host("one")
    store = open_dataset_store(settings)
    store.put(digits)
    there(settings).delete([f"{DIGITS}/x.npy"])
    assert not open_dataset_store(host("other")).has(DIGITS)
    (finding,) = StoredDatasets(settings).check().findings
    assert finding.wrong == f"the dataset '{DIGITS}' on S3 lacks x.npy."
    assert finding.mend == "Sweep the data again to store it whole."
    store.put(digits)
    assert names(settings) == NAMES
    assert StoredDatasets(settings).check().findings == ()


def test_removing_takes_all_of_it_away_here_and_there(host: Host, digits: Dataset) -> None:
    settings = host("one")
    store = open_dataset_store(settings)
    store.put(digits)
    kept = load_dataset("digits", split_seed=1)
    store.put(kept)
    (store.folder / f".writing-{DIGITS[:12]}-killed").mkdir()
    shutil.copytree(store.folder / DIGITS, store.folder / f"{DIGITS}.damaged")
    for _ in range(2):
        store.remove(DIGITS)
        assert store.list() == (kept.fingerprint,)
        assert [path.name for path in store.folder.iterdir()] == [kept.fingerprint]
        assert {name.partition("/")[0] for name in names(settings)} == {kept.fingerprint}
    store.remove("../x")
    open_dataset_store(host("other")).remove(kept.fingerprint)  # there, and nothing here
    assert names(settings) == [] and store.has(kept.fingerprint)


@pytest.mark.parametrize(
    ("changes", "url", "fragment"),
    [
        ({}, "s3://absent/x", "has no bucket 'absent'"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "", "no object store answers at http://127"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}, "", "there is no login for s3://datasets"),
    ],
)
def test_a_store_that_cannot_be_reached_is_said_so_before_it_is_used(
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    url: str,
    fragment: str,
) -> None:
    settings = host("one")
    open_dataset_store(settings).reach()
    use(monkeypatch, changes)
    env = {"MLOPS_HOME": str(settings.home), "MLOPS_DATASETS_URL": url or settings.datasets_url}
    with pytest.raises(MlopsError, match=fragment) as caught:
        open_dataset_store(Settings.from_env(env)).reach()
    assert caught.value.exit_code == 1
    (finding,) = examine(env)["datasets"].findings
    assert fragment in finding.wrong
    assert finding.mend and SECRET not in finding.wrong + finding.mend


def test_the_doctor_counts_what_is_there_and_here(host: Host, digits: Dataset) -> None:
    one, other = host("one"), host("other")
    assert StoredDatasets(one).check().findings == ()
    open_dataset_store(one).put(digits)
    assert StoredDatasets(one).check().says == f"1 stored at {one.datasets_url}, 1 copied here"
    assert StoredDatasets(other).check().says == f"1 stored at {one.datasets_url}, 0 copied here"
    x = one.datasets_folder / DIGITS / "x.npy"
    x.write_bytes(x.read_bytes()[:-4])
    (finding,) = StoredDatasets(one).check().findings
    subprocess.run(finding.mend, shell=True, check=True)
    assert open_dataset_store(one).get(DIGITS).fingerprint == DIGITS  # fetched anew


def test_what_is_being_stored_now_is_no_finding_and_what_was_killed_is(host: Host) -> None:
    from mlops.stores.stored_datasets import find_partial

    now = datetime.now(UTC)
    part = {DIGITS: {"x.npy": Object(f"{DIGITS}/x.npy", 1, now - timedelta(minutes=5))}}
    assert list(find_partial(part, now)) == []
    (wrong,) = find_partial(part, now + timedelta(hours=1))
    assert "was being stored on S3 when its process was killed" in wrong
