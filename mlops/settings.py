"""Where things live. Read from the environment only, and never logged: a URL may hold a password.

Nothing set means embedded mode: one folder (`MLOPS_HOME`, by default ./.mlops) holds everything,
and the tracking server is a local one that Podium starts itself. A team sets the same names to its
own places; no code differs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlops.errors import UsageError

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Environment that switches telemetry and chatter of the parts off, here and in child processes."""

SETTINGS = (
    "MLOPS_HOME",
    "MLFLOW_TRACKING_URI",
    "MLOPS_STUDY_URL",
    "MLOPS_LEDGER_URL",
    "MLOPS_DATASETS_URL",
    "MLOPS_TRACKING_DB_URL",
    "MLOPS_ACCOUNTS_DB_URL",
    "MLOPS_ARTIFACTS_URL",
    "MLOPS_SIGNING_KEY",
    "MLOPS_PUBLIC_KEYS",
    "MLOPS_UI_URL",
    "MLOPS_REPLICAS",
)
"""The names of all settings."""

_TRACKING_URI = re.compile(r"(https?|sqlite|postgresql|mysql|mssql)(\+\w+)?://")
"""MLflow 3.17 refuses to keep runs in a bare folder."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The places Podium reads and writes.

    Attributes:
        home: Folder of everything embedded mode keeps, absolute.
        tracking_uri: The MLflow server, or None for the embedded one.
        study_url: SQLAlchemy URL of the Optuna studies.
        ledger_url: SQLAlchemy URL of the ledger of decisions.
        datasets_url: Folder of the dataset store, or s3://bucket/prefix, of which copies lie in
            `datasets_folder`.
        tracking_db_url: SQLAlchemy URL of the database behind the MLflow server, for programs of
            the administrator; None where only the server is known.
        accounts_db_url: SQLAlchemy URL of the database of MLflow's accounts; None without any.
        artifacts_url: Folder, or s3://bucket/prefix, where the MLflow server keeps artifacts; None
            where only the server is known.
        signing_key: Private key that signs releases.
        public_keys: Public keys that releases are verified with; a list, so that keys rotate.
        ui_url: Where people open MLflow's pages, where that is not the tracking server's address.
        replicas: Addresses of the metrics ports of the servers that serve models, as they were
            given; `registry.replicas` reads them.
    """

    home: Path
    tracking_uri: str | None = field(repr=False)
    study_url: str = field(repr=False)
    ledger_url: str = field(repr=False)
    datasets_url: str = field(repr=False)
    tracking_db_url: str | None = field(repr=False)
    accounts_db_url: str | None = field(repr=False)
    artifacts_url: str | None = field(repr=False)
    signing_key: Path
    public_keys: tuple[Path, ...]
    ui_url: str | None = field(default=None, repr=False)
    replicas: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Reads the settings; creates nothing.

        Raises:
            UsageError: `MLOPS_HOME` names a file, or `MLFLOW_TRACKING_URI` no server or database.
        """
        env = os.environ if env is None else env
        home = Path(env.get("MLOPS_HOME") or ".mlops").expanduser().absolute()
        if home.exists() and not home.is_dir():
            raise UsageError(f"MLOPS_HOME is a file; expected a folder, got {str(home)!r}.")
        tracking_uri = env.get("MLFLOW_TRACKING_URI") or None
        if tracking_uri is not None and not _TRACKING_URI.match(tracking_uri):
            raise UsageError(
                "MLFLOW_TRACKING_URI is no tracking server; expected http://, https:// or the URL "
                "of a database. Unset it to use the embedded server."
            )
        public = env.get("MLOPS_PUBLIC_KEYS")
        return cls(
            home=home,
            tracking_uri=tracking_uri,
            study_url=env.get("MLOPS_STUDY_URL") or f"sqlite:///{home / 'studies.db'}",
            ledger_url=env.get("MLOPS_LEDGER_URL") or f"sqlite:///{home / 'ledger.db'}",
            datasets_url=env.get("MLOPS_DATASETS_URL") or str(home / "datasets"),
            tracking_db_url=env.get("MLOPS_TRACKING_DB_URL") or _behind(tracking_uri, home),
            accounts_db_url=env.get("MLOPS_ACCOUNTS_DB_URL") or None,
            artifacts_url=env.get("MLOPS_ARTIFACTS_URL")
            or (str(home / "artifacts") if tracking_uri is None else None),
            signing_key=Path(env.get("MLOPS_SIGNING_KEY") or home / "keys" / "signing.pem"),
            public_keys=tuple(Path(key) for key in public.split(os.pathsep))
            if public
            else (home / "keys" / "public.pem",),
            ui_url=env.get("MLOPS_UI_URL") or None,
            replicas=tuple(filter(None, map(str.strip, env.get("MLOPS_REPLICAS", "").split(",")))),
        )

    @property
    def embedded(self) -> bool:
        return self.tracking_uri is None

    @property
    def mlflow_db_uri(self) -> str:
        """SQLAlchemy URL of the embedded MLflow database; a tracking URI of its own."""
        return _embedded_db(self.home)

    @property
    def artifact_root(self) -> Path:
        """Folder under which the embedded server lays artifacts, as plain files."""
        return self.home / "artifacts"

    @property
    def datasets_folder(self) -> Path:
        """Folder of the local copies of datasets that are kept on S3."""
        return self.home / "datasets"

    @property
    def direct_uri(self) -> str:
        """The tracking URI that answers without starting a server."""
        return self.tracking_uri or self.mlflow_db_uri


def _embedded_db(home: Path) -> str:
    return f"sqlite:///{home / 'mlflow.db'}"


def _behind(tracking_uri: str | None, home: Path) -> str | None:
    """Returns the database behind a tracking server; None where the URI does not tell it."""
    if tracking_uri is None:
        return _embedded_db(home)
    return None if tracking_uri.startswith("http") else tracking_uri


def quiet() -> None:
    """Switches telemetry and chatter of the parts off in this process and its children."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
