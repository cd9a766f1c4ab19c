"""The doctor as a program, and what it looks at beside the stores."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mlops.data import load_dataset
from mlops.dataset_store import DatasetStore
from mlops.doctor import as_text, examine, find_places, main, to_json
from mlops.machine import (
    Space,
    check_disk,
    check_gpu,
    find_gpu_names,
    find_lacking_cuda,
    measure,
)
from mlops.settings import Settings
from mlops.settings_check import check_settings
from mlops.stores.store import GROUP, Finding, Health, UnopenedStore, find_entries, open_stores
from mlops.stores.stored_datasets import StoredDatasets
from tests.mlops.table_files import four, save

ROOT = Path(__file__).parents[2]
ROOMY = Space(device=1, size_bytes=1 << 40, free_bytes=1 << 39, n_files=1000, n_files_free=900)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "a home"
    monkeypatch.setenv("MLOPS_HOME", str(home))
    return home


def at(home: Path) -> Settings:
    return Settings.from_env({"MLOPS_HOME": str(home)})


def wrongs(findings: tuple[Finding, ...]) -> list[str]:
    return [one.wrong for one in findings]


def test_where_nothing_is_yet_all_is_fine_and_nothing_is_made(home: Path, tmp_path: Path) -> None:
    found = examine({"MLOPS_HOME": str(home)})
    found.pop("disk")  # that of who runs the suite may be full
    found.pop("gpu")
    stores = ["datasets", "journal", "keys", "ledger", "releases", "studies", "tracking"]
    assert list(found) == ["settings", *stores]
    assert not [one for health in found.values() for one in health.findings]
    assert list(tmp_path.iterdir()) == []
    text = as_text(found)
    assert "journal: fine; nothing waits" in text
    assert text.endswith("\nEverything is fine.")


def test_it_imports_neither_tensorflow_nor_mlflow(home: Path) -> None:
    code = (
        "import sys; from mlops.doctor import main; main(['--json']); "
        "print([name for name in ('tensorflow', 'keras', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    told, heavy = done.stdout.splitlines()
    assert {"findings", "areas"} == set(json.loads(told))
    assert heavy == "[]"


def test_a_finding_is_said_with_its_command_and_exit_code_1(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOPS_STUDY_ULR", "sqlite:///x.db")
    assert main([]) == 1
    said = capsys.readouterr().out
    assert "settings: 1 finding" in said
    assert "MLOPS_STUDY_ULR is no setting and is not read; did you mean MLOPS_STUDY_URL?" in said
    assert '    export MLOPS_STUDY_URL="$MLOPS_STUDY_ULR"; unset MLOPS_STUDY_ULR' in said
    assert main(["--json"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    (finding,) = [one for one in json.loads(line)["findings"] if one["store"] == "settings"]
    assert set(finding) == {"store", "wrong", "mend"}
    with pytest.raises(SystemExit) as end:
        main(["--what"])
    assert end.value.code == 2


def test_a_password_is_never_said() -> None:
    env = {
        "MLOPS_HOME": "/nowhere/at/all",
        "MLOPS_STUDY_URL": "postgresql+psycopg://ada:secret@127.0.0.1:1/studies",
        "MLFLOW_TRACKING_URI": "http://ada:secret@127.0.0.1:1",
        "MLOPS_LEDGER_URL": "ada:secret@host",
        "MLOPS_DATASETS_URL": "s3://ada:secret@host/data",
        "MLOPS_TRACKING_DB_URL": "postgresql+psycopg://ada:secret@127.0.0.1:1/mlflow",
        "MLOPS_ACCOUNTS_DB_URL": "ada:secret@host",
        "MLOPS_ARTIFACTS_URL": "http://ada:secret@host",
    }
    found = examine(env)
    said = as_text(found) + json.dumps(to_json(found))
    assert "secret" not in said
    assert "nothing answers at 127.0.0.1 port 1" in said
    assert "expected http://127.0.0.1:1/health within 3 s" in said
    assert "MLOPS_LEDGER_URL is no URL of a database" in said
    assert "MLOPS_DATASETS_URL names no bucket; expected s3://bucket/prefix" in said
    assert "Name the server by AWS_ENDPOINT_URL" in said
    assert "MLOPS_ACCOUNTS_DB_URL is no URL of a database" in said


def test_a_store_that_cannot_be_opened_or_fails_is_a_finding(home: Path) -> None:
    entries = [
        EntryPoint("absent", "mlops.nowhere:Store", GROUP),
        EntryPoint("datasets", "mlops.stores.stored_datasets:StoredDatasets", GROUP),
    ]
    absent, datasets = open_stores(at(home), entries)
    assert isinstance(absent, UnopenedStore)
    assert (absent.name, datasets.name) == ("absent", "datasets")
    with pytest.raises(ModuleNotFoundError):
        absent.check()
    home.mkdir()
    (home / "datasets").write_text("")
    found = examine({"MLOPS_HOME": str(home)})["datasets"]
    assert "MLOPS_DATASETS_URL names the file" in found.findings[0].wrong
    assert found.findings[0].mend == "Let MLOPS_DATASETS_URL name one."


def test_a_check_that_breaks_does_not_stop_the_others_and_debug_shows_it(home: Path) -> None:
    home.mkdir()
    (home / "journal").mkdir()
    (home / "journal" / "sweep").mkdir()
    (home / "journal" / "sweep" / "1.journal").mkdir()  # what no program makes
    found = examine({"MLOPS_HOME": str(home)})
    (one,) = found["journal"].findings
    assert one.wrong.startswith("it cannot be looked at: IsADirectoryError")
    assert one.mend.endswith("python -m mlops.doctor --debug")
    assert found["tracking"].findings == ()
    with pytest.raises(IsADirectoryError):
        examine({"MLOPS_HOME": str(home)}, debug=True)


def test_the_stores_of_a_checkout_are_known_though_nothing_is_installed(tmp_path: Path) -> None:
    names = [entry.name for entry in find_entries()]
    assert names == sorted(names)
    assert {"datasets", "journal", "ledger", "studies", "tracking"} <= set(names)
    code = "from mlops.stores.store import find_entries; print(len(find_entries()))"
    alone = subprocess.run(
        [sys.executable, "-S", "-c", code],  # no site-packages, and so no entry points
        env={"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert alone.stdout.strip() == str(len(names)), alone.stderr


def test_the_pyproject_of_another_project_names_no_store_of_ours(tmp_path: Path) -> None:
    lines = (ROOT / "pyproject.toml").read_text().replace('"podium-mlops"', '"other"', 1)
    (tmp_path / "pyproject.toml").write_text(lines.replace("datasets =", "theirs ="))
    assert "theirs" not in [entry.name for entry in find_entries(tmp_path)]


@pytest.mark.parametrize(
    ("name", "value", "fragment", "mend"),
    [
        ("MLOPS_HOME", "{file}", "MLOPS_HOME is a file; expected a folder", "unset MLOPS_HOME"),
        ("MLOPS_HOME", "{file}/home", "is a file and the home", "Let MLOPS_HOME name a folder"),
        ("MLFLOW_TRACKING_URI", "./mlruns", "MLFLOW_TRACKING_URI is no tracking", "Unset it"),
        ("MLOPS_STUDY_URL", "studies.db", "got a word without ://", "unset MLOPS_STUDY_URL"),
        ("MLOPS_STUDY_URL", "ftp://host/x", "got ftp://", "unset MLOPS_STUDY_URL"),
        ("MLOPS_STUDY_URL", "sqlite://", "database in memory", "unset MLOPS_STUDY_URL"),
        ("MLOPS_STUDY_URL", "postgresql://u:p@h:5432", "names no database", "name the database"),
        ("MLOPS_TRACKING_DB_URL", "host", "got a word without ://", "unset MLOPS_TRACKING_DB_URL"),
        ("MLOPS_TRACKING_DB_URL", "sqlite:///x.db", "another database", "unset MLOPS_TRACKING_DB"),
        ("MLOPS_ACCOUNTS_DB_URL", "http://h/x", "got http://", "unset MLOPS_ACCOUNTS_DB_URL"),
        ("MLOPS_ARTIFACTS_URL", "ftp://host", "MLOPS_ARTIFACTS_URL is neither", "name one of"),
        ("MLOPS_ARTIFACTS_URL", "s3://x@y", "names no bucket", "Name the server by AWS"),
        ("MLOPS_ARTIFACTS_URL", "s3://bucket", "the embedded server", "unset MLOPS_ARTIFACTS_URL"),
        ("MLOPS_SIGNING_KEY", "{file}.pem", "no file is there", "unset MLOPS_SIGNING_KEY"),
        ("MLOPS_PUBLIC_KEYS", "{file}.pem", "no file is there", "unset MLOPS_PUBLIC_KEYS"),
    ],
)
def test_a_wrong_setting_is_a_finding(
    name: str, value: str, fragment: str, mend: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    env = {"MLOPS_HOME": str(tmp_path / "home"), name: value.format(file=file)}
    _, health = check_settings(env)
    (one,) = health.findings
    assert fragment in one.wrong
    assert mend in one.mend


def test_settings_of_another_house_are_none_of_ours(tmp_path: Path) -> None:
    env = {"MLOPS_HOME": str(tmp_path), "MLOPS_REGION": "north", "PATH": "/bin"}
    assert check_settings(env)[1].findings == ()


def test_a_signing_key_that_others_can_read_is_mended_by_the_command(tmp_path: Path) -> None:
    key = tmp_path / "home" / "keys" / "signing.pem"
    key.parent.mkdir(parents=True)
    key.write_text("")
    key.chmod(0o644)
    env = {"MLOPS_HOME": str(tmp_path / "home")}
    (one,) = check_settings(env)[1].findings
    assert "expected mode 600, got 644" in one.wrong
    subprocess.run(one.mend, shell=True, check=True)
    assert check_settings(env)[1].findings == ()


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"free_bytes": 1 << 29}, "nearly full; expected 1 GiB and 5 % to be free, got 512.0 MiB"),
        ({"size_bytes": 1 << 33, "free_bytes": 1 << 29}, "got 512.0 MiB of 8.0 GiB"),
        ({"free_bytes": 40 << 30}, "got 40.0 GiB of 1.0 TiB"),
        ({"n_files_free": 9}, "expected 5 % of its inodes to be free, got 9 of 1000"),
    ],
)
def test_a_disk_that_is_nearly_full_is_a_finding(
    changes: dict[str, int], fragment: str, tmp_path: Path
) -> None:
    space = dataclasses.replace(ROOMY, **changes)
    health = check_disk([tmp_path / "one", tmp_path / "two"], lambda _: space)
    (one,) = health.findings  # both folders lie on one disk
    assert fragment in one.wrong
    assert f"-xh -d 2 {tmp_path / 'one'} | sort -h" in one.mend


def test_a_roomy_disk_is_fine_and_so_is_one_that_counts_no_files(tmp_path: Path) -> None:
    uncounted = dataclasses.replace(ROOMY, device=2, n_files=0, n_files_free=0)
    spaces = {"one": ROOMY, "two": uncounted}
    health = check_disk(map(Path, spaces), lambda folder: spaces[folder.name])
    assert health == Health("512.0 GiB free, 512.0 GiB free")
    assert measure(tmp_path / "deep" / "in it").device == tmp_path.stat().st_dev


def test_the_disks_are_those_of_every_folder_that_grows(tmp_path: Path) -> None:
    env = {
        "MLOPS_HOME": str(tmp_path / "home"),
        "MLOPS_STUDY_URL": f"sqlite:///{tmp_path}/studies/s.db",
        "MLFLOW_TRACKING_URI": "postgresql+psycopg://host/mlflow",
        "MLOPS_DATASETS_URL": f"file://{tmp_path}/data%20sets",
    }
    places = [path.relative_to(tmp_path).as_posix() for path in find_places(Settings.from_env(env))]
    assert places == ["home", "studies", "data sets"]
    env["MLOPS_DATASETS_URL"] = "s3://bucket/data"
    assert find_places(Settings.from_env(env))[-1] == tmp_path / "home" / "datasets"


def test_a_gpu_that_tensorflow_cannot_use_is_a_finding_and_no_gpu_is_none() -> None:
    assert check_gpu(list).says == "no GPU; trains on the CPU"
    assert check_gpu(lambda: ["H100", "H100"], list) == Health("H100")
    health = check_gpu(lambda: ["H100"], lambda: ["nvidia-cudnn-cu12"])
    (one,) = health.findings
    assert "there is a GPU (H100), but TensorFlow lacks the CUDA libraries" in one.wrong
    assert "1 packages are missing, nvidia-cudnn-cu12 among them" in one.wrong
    assert "python -m pip install 'tensorflow[and-cuda]==" in one.mend


def test_gpus_and_cuda_packages_are_listed_whatever_there_is() -> None:
    assert isinstance(find_gpu_names(), list)
    assert all(name.startswith("nvidia-") for name in find_lacking_cuda())


def test_a_damaged_dataset_is_moved_away_by_the_command(home: Path, tmp_path: Path) -> None:
    store = StoredDatasets(at(home))
    assert store.check() == Health("none yet")
    dataset = load_dataset(save(tmp_path / "a.npz", **four()))
    DatasetStore(home / "datasets").put(dataset)
    assert store.check() == Health("1 stored")
    x = home / "datasets" / dataset.fingerprint / "x.npy"
    x.write_bytes(x.read_bytes()[:-4])
    (one,) = store.check().findings
    assert dataset.fingerprint in one.wrong
    assert "cannot be read: " in one.wrong
    subprocess.run(one.mend, shell=True, check=True)
    assert store.check() == Health("none yet")


def test_a_dataset_without_its_last_file_and_one_half_written_are_findings(home: Path) -> None:
    fingerprint = "0" * 64
    (home / "datasets" / fingerprint).mkdir(parents=True)
    writing = home / "datasets" / ".writing-000000000000-1"
    writing.mkdir()
    store = StoredDatasets(at(home))
    (absent,) = store.check().findings  # the other is being written just now
    assert "its dataset.json is missing" in absent.wrong
    os.utime(writing, (1.0, 1.0))
    absent, left = store.check().findings
    assert "1 dataset(s) were being written when their process was killed" in left.wrong
    for one in (absent, left):
        subprocess.run(one.mend, shell=True, check=True)
    assert store.check().findings == ()
