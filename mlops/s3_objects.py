"""Bytes by name in S3, or in what speaks its protocol. The only file that knows boto3.

Server, login and region come from boto3's own variables, which MLflow's server reads, too:
AWS_ENDPOINT_URL, AWS_SHARED_CREDENTIALS_FILE, AWS_DEFAULT_REGION.
"""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlops.errors import MlopsError, first_line, without_passwords
from mlops.objects import N_AT_ONCE, Object, check_name, written_beside

CONNECT_S = 5
READ_S = 60
N_ATTEMPTS = 3
PART_BYTES = 16 * 2**20
"""What is larger goes in parts of this size, some at a time."""
N_A_CALL = 1000
"""How many names S3 takes in one call."""

_MISSING = ("NoSuchKey", "NoSuchUpload", "404")
_LOGIN = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidToken",
    "ExpiredToken",
    "AuthorizationHeaderMalformed",
)


class S3Objects:
    """The objects of a bucket whose keys begin with a prefix.

    S3 shows an object when all of it is there. An upload in parts that was killed leaves parts that
    nothing shows and that take room, until `delete_unfinished`.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket = bucket
        self._begin = f"{prefix}/" if prefix else ""
        self._made: Any = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self._begin}".rstrip("/")

    def list(self, prefix: str = "") -> Iterator[Object]:
        begin = self._begin + prefix
        found: list[Object] = []
        with self._asked("list") as client:
            pages = client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=begin):
                for one in page.get("Contents", ()):
                    name = one["Key"].removeprefix(self._begin)
                    if not name.endswith("/"):  # what some tools put where a folder is to be seen
                        found.append(Object(name, one["Size"], one["LastModified"]))
        # SeaweedFS lists "a/b" before "a-b", as a file system does.
        return iter(sorted(found, key=lambda one: one.name))

    def read(self, name: str) -> bytes:
        with self._asked("read", name) as client:
            content: bytes = client.get_object(Bucket=self.bucket, Key=self._key(name))[
                "Body"
            ].read()
            return content

    def download(self, name: str, path: Path) -> None:
        place = {"Bucket": self.bucket, "Key": self._key(name)}
        with self._asked("read", name) as client:
            answer = client.get_object(**place)
            with answer["Body"] as body, written_beside(path) as beside, beside.open("wb") as file:
                if answer["ContentLength"] <= PART_BYTES:
                    shutil.copyfileobj(body, file, 2**20)
                else:
                    body.close()
                    client.download_fileobj(**place, Fileobj=file, Config=_in_parts())

    def upload(self, path: Path, name: str) -> None:
        place = {"Bucket": self.bucket, "Key": self._key(name)}
        with path.open("rb") as file, self._asked("write", name) as client:
            if path.stat().st_size <= PART_BYTES:
                client.put_object(**place, Body=file)
            else:
                client.upload_fileobj(file, **place, Config=_in_parts())

    def delete(self, names: Iterable[str]) -> None:
        keys = iter([{"Key": self._key(name)} for name in names])
        while some := list(itertools.islice(keys, N_A_CALL)):
            with self._asked("delete") as client:
                answer = client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": some, "Quiet": True}
                )
                for one in answer.get("Errors", ()):
                    if one.get("Code") not in _MISSING:
                        raise self._failed("delete", str(one.get("Code")))

    def delete_unfinished(self, folder: str) -> None:
        begin = self._begin + (f"{check_name(folder)}/" if folder else "")
        with self._asked("delete") as client:
            pages = client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=self.bucket, Prefix=begin):
                for one in page.get("Uploads", ()):
                    client.abort_multipart_upload(
                        Bucket=self.bucket, Key=one["Key"], UploadId=one["UploadId"]
                    )

    def _key(self, name: str) -> str:
        return self._begin + check_name(name)

    @contextmanager
    def _asked(self, doing: str, name: str | None = None) -> Iterator[Any]:
        """Yields the client; what it raises in the block becomes a sentence of ours."""
        try:
            from botocore import exceptions
        except ModuleNotFoundError as err:
            raise MlopsError(
                f"{self.url} needs boto3, which is not installed. "
                "Type: python -m pip install 'podium-mlops[team]'"
            ) from err
        try:
            yield self._client()
        except exceptions.ClientError as err:
            code = str(err.response.get("Error", {}).get("Code"))
            if name is not None and code in _MISSING:
                raise FileNotFoundError(f"{self.url} has no object {name!r}") from err
            raise self._failed(doing, code) from err
        except (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.ProfileNotFound,
        ) as err:
            raise MlopsError(
                f"there is no login for {self.url} ({type(err).__name__}); expected an access key "
                "and its secret. Name the file that holds them by AWS_SHARED_CREDENTIALS_FILE."
            ) from err
        except (exceptions.ConnectionError, exceptions.HTTPClientError) as err:
            raise MlopsError(
                f"no object store answers at {self._server()}, where {self.url} is expected "
                f"({type(err).__name__}). Start it, or name another by AWS_ENDPOINT_URL."
            ) from err
        except exceptions.BotoCoreError as err:
            raise MlopsError(f"{self.url} cannot be used: {first_line(err)}.") from err

    def _failed(self, doing: str, code: str) -> MlopsError:
        server = f"the object store at {self._server()}"
        if code == "NoSuchBucket":
            wrong = f"{server} has no bucket {self.bucket!r}. Make it, or name another."
        elif code in _LOGIN:
            wrong = (
                f"{server} refuses the login for {self.url} ({code}). Check the access key in the "
                "file that AWS_SHARED_CREDENTIALS_FILE names."
            )
        elif code in ("AccessDenied", "403"):
            wrong = (
                f"{server} does not let this login {doing} objects of {self.url} ({code}). "
                "Ask who runs it for the right to."
            )
        else:
            wrong = f"{server} could not {doing} objects of {self.url}: {code}. See its log."
        return MlopsError(wrong)

    def _server(self) -> str:
        return "?" if self._made is None else without_passwords(self._made.meta.endpoint_url)

    def _client(self) -> Any:
        with self._lock:  # making one is not safe with threads; using one is
            if self._made is None:
                self._made = _make_client(self.url)
            return self._made


def make_bucket(bucket: str) -> bool:
    """Makes a bucket, unless this login has it already; returns whether it was made.

    Raises:
        MlopsError: the store does not answer, or does not let this login.
    """
    with S3Objects(bucket, "")._asked("make") as client:
        if bucket in {one["Name"] for one in client.list_buckets()["Buckets"]}:
            return False
        client.create_bucket(Bucket=bucket)
        return True


def _make_client(url: str) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"mode": "standard", "total_max_attempts": N_ATTEMPTS},
        max_pool_connections=2 * N_AT_ONCE,
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except ValueError as err:  # that of the endpoint; BotoCoreErrors go on to who asked
        raise MlopsError(
            f"{url} cannot be used: AWS_ENDPOINT_URL is no URL; expected http://host:port or "
            "https://host:port."
        ) from err


def _in_parts() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4
    )
