"""One contract over a folder and a bucket of a real SeaweedFS, and what each can do alone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops.errors import MlopsError, UsageError
from mlops.objects import (
    UNFINISHED,
    FolderObjects,
    Objects,
    check_name,
    download_all,
    open_objects,
    upload_all,
)
from mlops.s3_objects import PART_BYTES
from tests.object_store import SECRET, ObjectStore, open_object_store, use


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with open_object_store(tmp_path_factory.mktemp("seaweed"), "bucket") as store:
        yield store


@pytest.fixture(params=["folder", "s3"])
def objects(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Objects:
    if request.param == "folder":
        return open_objects(str(tmp_path / "deep" / "objects"))
    use(monkeypatch, request.getfixturevalue("store").env())
    return open_objects(f"s3://bucket/{tmp_path.name}")


def names(objects: Objects, prefix: str = "") -> list[str]:
    return [one.name for one in objects.list(prefix)]


def put(objects: Objects, tmp_path: Path, **content: bytes) -> None:
    for name, data in content.items():
        (tmp_path / "content").write_bytes(data)
        objects.upload(tmp_path / "content", name)


def test_nothing_is_there_before_something_was_put_there(objects: Objects) -> None:
    assert names(objects) == names(objects, "a/") == []
    for read in (objects.read, lambda name: objects.download(name, Path("/nowhere/x"))):
        with pytest.raises(FileNotFoundError, match="has no object 'a/b'"):
            read("a/b")
    objects.delete(["a/b", "c"])
    objects.delete_unfinished("a")
    objects.delete_unfinished("")


def test_what_was_uploaded_is_listed_read_replaced_and_deleted(
    objects: Objects, tmp_path: Path
) -> None:
    content = {"a/b.txt": b"one", "a/empty": b"", "top": b"two"}
    put(objects, tmp_path, **content)
    assert [(one.name, one.size_bytes) for one in objects.list()] == [
        ("a/b.txt", 3),
        ("a/empty", 0),
        ("top", 3),
    ]
    assert {name: objects.read(name) for name in content} == content
    put(objects, tmp_path, **{"a/b.txt": b"other"})
    objects.download("a/b.txt", tmp_path / "new" / "folder" / "b")
    assert (tmp_path / "new" / "folder" / "b").read_bytes() == b"other"
    objects.download("a/empty", tmp_path / "new" / "empty")
    assert (tmp_path / "new" / "empty").read_bytes() == b""
    objects.delete(["a/b.txt", "a/empty", "absent"])
    assert names(objects) == ["top"]


def test_a_list_is_sorted_by_the_whole_name_and_takes_any_prefix(
    objects: Objects, tmp_path: Path
) -> None:
    unsorted = ["a/b/c", "a-b", "a/b", "ab", "B", "ä/x y+z%20", "a/c"]
    unsorted.remove("a/b")  # no file system has that beside a/b/c
    put(objects, tmp_path, **dict.fromkeys(unsorted, b"x"))
    assert names(objects) == sorted(unsorted)
    assert names(objects, "a") == ["a-b", "a/b/c", "a/c", "ab"]
    assert names(objects, "a/") == ["a/b/c", "a/c"]
    assert names(objects, "a/b/") == ["a/b/c"]
    assert names(objects, "nowhere/") == []
    assert objects.read("ä/x y+z%20") == b"x"


def test_what_is_listed_says_when_it_was_written(objects: Objects, tmp_path: Path) -> None:
    put(objects, tmp_path, a=b"x")
    (one,) = objects.list()
    assert abs(one.changed_at.timestamp() - (tmp_path / "content").stat().st_mtime) < 60


def test_an_object_larger_than_a_part_arrives_whole(objects: Objects, tmp_path: Path) -> None:
    content = os.urandom(2 * PART_BYTES + 5)
    put(objects, tmp_path, big=content)
    assert [one.size_bytes for one in objects.list()] == [len(content)]
    objects.download("big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


def test_many_objects_are_moved_at_once(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    files = [(tmp_path / "many" / str(i), f"some/{i % 7}/{i}") for i in range(1100)]
    for path, name in files:
        path.write_text(name)
    upload_all(objects, files)
    assert len(names(objects)) == 1100  # more than a page of S3
    back = [(name, tmp_path / "back" / name) for _, name in files]
    download_all(objects, back)
    assert all(path.read_text() == name for name, path in back)
    objects.delete(name for _, name in files)
    assert names(objects) == []


def test_of_many_the_first_error_is_told_and_the_rest_is_not_begun(
    objects: Objects, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="no object"):
        download_all(objects, [(f"absent{i}", tmp_path / "back" / str(i)) for i in range(50)])
    assert not list(tmp_path.glob("back/*"))


def test_a_download_that_fails_leaves_the_file_as_it_was(objects: Objects, tmp_path: Path) -> None:
    (tmp_path / "back").write_text("before")
    with pytest.raises(FileNotFoundError):
        objects.download("absent", tmp_path / "back")
    put(objects, tmp_path, a=b"x")
    (tmp_path / "file").write_text("")
    with pytest.raises(MlopsError, match=r"cannot be written: .* Check the rights"):
        objects.download("a", tmp_path / "file" / "below")
    assert (tmp_path / "back").read_text() == "before"
    assert not list(tmp_path.glob(f"{UNFINISHED}*"))


def test_several_threads_write_one_name_and_a_reader_sees_one_of_them_whole(
    objects: Objects, tmp_path: Path
) -> None:
    contents = [bytes([i]) * 100_000 for i in range(4)]
    for i, content in enumerate(contents):
        (tmp_path / str(i)).write_bytes(content)
    writers = [
        threading.Thread(target=lambda i=i: [objects.upload(tmp_path / str(i), "a")] * 5)
        for i in range(4)
    ]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
        assert objects.read("a") in contents


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "a//b", "", ".", "a/", "a\nb", "a\0"])
def test_a_name_that_leads_elsewhere_is_refused(
    objects: Objects, tmp_path: Path, name: str
) -> None:
    (tmp_path / "content").write_text("")
    uses: list[Callable[[], object]] = [
        lambda: objects.read(name),
        lambda: objects.download(name, tmp_path / "back"),
        lambda: objects.upload(tmp_path / "content", name),
        lambda: objects.delete([name]),
        lambda: check_name(name),
    ]
    for one in uses:
        with pytest.raises(UsageError, match="no name of an object"):
            one()


# A folder


def test_a_killed_writer_leaves_a_file_that_no_list_shows_and_that_can_be_deleted(
    tmp_path: Path,
) -> None:
    left = tmp_path / "a" / "b" / f"{UNFINISHED}1"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    objects = FolderObjects(tmp_path)
    assert names(objects) == []
    objects.delete_unfinished("a")
    assert list(tmp_path.iterdir()) == []


def test_the_last_object_of_a_folder_takes_the_folder_with_it(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path / "root")
    put(objects, tmp_path, **{"a/b/c": b"", "a/d": b""})
    objects.delete(["a/b/c", "a", "a/d/e"])  # neither a folder nor what a file cannot hold
    assert [path.name for path in (tmp_path / "root" / "a").iterdir()] == ["d"]
    objects.delete(["a/d"])
    assert list((tmp_path / "root").iterdir()) == []


def test_a_link_to_a_file_is_one_and_a_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path / "root")
    put(objects, tmp_path, a=b"xy")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "content")
    (tmp_path / "root" / "gone").symlink_to(tmp_path / "nowhere")
    assert [(one.name, one.size_bytes) for one in objects.list()] == [("a", 2), ("link", 2)]
    (tmp_path / "root" / "folder").symlink_to(tmp_path)
    with pytest.raises(MlopsError, match="is a link to a folder"):
        names(objects)


def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 100_000)
    code = """
import resource, signal, sys
from pathlib import Path
from mlops.objects import open_objects
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
open_objects(sys.argv[1]).upload(Path(sys.argv[2]), "a/b")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "store"), str(tmp_path / "big")]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"mlops.errors.MlopsError: '{tmp_path}/store/a/b' cannot be written: ")
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_a_folder_is_a_path_or_a_file_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b"
    monkeypatch.chdir(tmp_path)
    for url in (str(folder), "a b", folder.as_uri(), f"file://localhost{folder.as_uri()[7:]}"):
        assert open_objects(url).url == str(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"MLOPS_X names the file '.*/file'; expected a folder"):
        open_objects("file", "MLOPS_X")


# A bucket


@pytest.mark.parametrize(
    "url",
    ["s3://user:secret@bucket/key", "s3://host:9000/bucket", "s3://", "s3:///key", "s3://Bucket"],
)
def test_a_bucket_with_a_login_or_a_server_in_it_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_objects(url, "MLOPS_X")
    assert str(caught.value).startswith("MLOPS_X names no bucket; expected s3://bucket/prefix")
    assert "AWS_SHARED_CREDENTIALS_FILE" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["file://folder", "http://user:secret@x", "gs://bucket", ""])
def test_another_scheme_is_refused_without_showing_the_rest(url: str) -> None:
    with pytest.raises(UsageError, match="MLOPS_X is neither a folder nor a bucket") as caught:
        open_objects(url, "MLOPS_X")
    assert "secret" not in str(caught.value)


def test_a_bucket_and_its_prefix_are_told_as_they_were_given() -> None:
    assert open_objects("s3://bucket").url == open_objects("s3://bucket/").url == "s3://bucket"
    assert open_objects("s3://bucket/a/b/").url == "s3://bucket/a/b"
    with pytest.raises(UsageError, match="no name of an object"):
        open_objects("s3://bucket/a/../b")


def test_a_prefix_is_a_folder_and_not_the_beginning_of_a_name(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, store.env())
    put(open_objects("s3://bucket/team"), tmp_path, a=b"1")
    put(open_objects("s3://bucket/team2"), tmp_path, b=b"2")
    assert names(open_objects("s3://bucket/team")) == ["a"]
    assert {"team/a", "team2/b"} <= set(names(open_objects("s3://bucket")))


def refusal(objects: Objects, act: Callable[[Objects], object]) -> str:
    with pytest.raises(MlopsError) as caught:
        act(objects)
    message = str(caught.value)
    assert "\n" not in message and SECRET not in message and "key-of" not in message
    assert type(caught.value) is MlopsError
    return message


def every_use(tmp_path: Path) -> list[Callable[[Objects], object]]:
    (tmp_path / "content").write_text("x")
    return [
        names,
        lambda objects: objects.read("a"),
        lambda objects: objects.download("a", tmp_path / "back"),
        lambda objects: objects.upload(tmp_path / "content", "a"),
        lambda objects: objects.delete(["a"]),
        lambda objects: objects.delete_unfinished(""),
    ]


def test_a_bucket_that_is_not_there_is_said_so(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, store.env())
    for act in every_use(tmp_path)[:3]:  # SeaweedFS makes a bucket that an administrator writes to
        said = refusal(open_objects("s3://absent/data"), act)
        assert f"the object store at {store.url} has no bucket 'absent'. Make it" in said


def test_a_wrong_key_is_said_so_and_not_repeated(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for env in (store.env("stranger"), store.env(secret=SECRET + "wrong")):
        use(monkeypatch, env)
        for act in every_use(tmp_path):
            said = refusal(open_objects("s3://bucket/data"), act)
            assert "refuses the login for s3://bucket/data" in said
            assert "AWS_SHARED_CREDENTIALS_FILE" in said


def test_a_login_that_may_only_read_is_said_so_when_it_writes(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, store.env())
    put(open_objects("s3://bucket/read"), tmp_path, a=b"x")
    use(monkeypatch, store.env("reader"))
    objects = open_objects("s3://bucket/read")
    assert objects.read("a") == b"x"
    for act, doing in (
        (lambda one: one.upload(tmp_path / "content", "a"), "write"),
        (lambda one: one.delete(["a"]), "delete"),
    ):
        said = refusal(objects, act)
        assert f"does not let this login {doing} objects of s3://bucket/read" in said
    assert objects.read("a") == b"x"


def test_no_login_at_all_is_said_so(monkeypatch: pytest.MonkeyPatch, store: ObjectStore) -> None:
    use(monkeypatch, store.env() | {"AWS_SHARED_CREDENTIALS_FILE": "/nowhere/aws"})
    said = refusal(open_objects("s3://bucket"), names)
    assert "there is no login for s3://bucket" in said


def test_a_server_that_does_not_answer_is_said_so_soon(
    monkeypatch: pytest.MonkeyPatch, store: ObjectStore, tmp_path: Path
) -> None:
    use(monkeypatch, store.env() | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    for act in every_use(tmp_path):
        said = refusal(open_objects("s3://bucket"), act)
        assert said.startswith("no object store answers at http://127.0.0.1:9, where s3://bucket")
    use(monkeypatch, {"AWS_ENDPOINT_URL": "127.0.0.1:9"})
    assert "AWS_ENDPOINT_URL is no URL" in refusal(open_objects("s3://bucket"), names)


def test_a_killed_upload_shows_nothing_and_what_it_left_can_be_deleted(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, store.env())
    client = store.client()
    for name in ("killed/deep/a", "other/a"):
        begun = client.create_multipart_upload(Bucket="bucket", Key=name)
        client.upload_part(
            Bucket="bucket", Key=name, UploadId=begun["UploadId"], PartNumber=1, Body=b"half"
        )

    def left() -> list[str]:
        found = client.list_multipart_uploads(Bucket="bucket").get("Uploads", [])
        return [one["Key"] for one in found]

    assert left() == ["killed/deep/a", "other/a"]
    objects = open_objects("s3://bucket/killed")
    assert names(objects) == []
    objects.delete_unfinished("deep")
    assert left() == ["other/a"]
    open_objects("s3://bucket").delete_unfinished("other")
    assert left() == []


def test_a_store_that_was_killed_has_what_was_uploaded(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, store.env())
    objects = open_objects("s3://bucket/durable")
    put(objects, tmp_path, a=b"x" * 1000)
    store.stop()
    assert "no object store answers" in refusal(objects, lambda one: one.read("a"))
    store.start()
    # Its S3 port may answer before its volumes do, with an internal error.
    deadline = time.monotonic() + 30
    found = b""
    while not found and time.monotonic() < deadline:
        with contextlib.suppress(MlopsError):
            found = objects.read("a")
    assert found == b"x" * 1000


def test_where_boto3_is_missing_the_command_is_said() -> None:
    code = """
import sys
sys.modules["boto3"] = sys.modules["botocore"] = None
from mlops.objects import open_objects
list(open_objects("s3://bucket/data").list())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "mlops.errors.MlopsError: s3://bucket/data needs boto3, which is not installed. "
        "Type: python -m pip install 'podium-mlops[team]'"
    )


def test_boto3_is_imported_only_where_s3_is_used(tmp_path: Path) -> None:
    code = """
import sys
from mlops.objects import open_objects
list(open_objects("folder").list())
open_objects("s3://bucket/data")
print("boto3" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert done.stdout == "False\n", done.stderr
