"""MLflow's accounts with Podium's rules before them: `mlflow server --app-name podium-accounts`.

MLflow's own application does the logins, the rights and all the work. What it lacks for a team is
that a name says who may make something: any account could make `digits-releases`, or a model that
looks like a release, or an experiment that lies in any folder of the server. `mlops.team.rules`
refuses that, and `mlops.team.grants` grants the roles their rights on what is made. Besides, MLflow
reads a request into memory before it asks for the login, and copies an artifact to its disk before
it sends it: here the login comes first, and bytes of S3 go through as they come.

Secrets may be files: of MLFLOW_FLASK_SERVER_SECRET_KEY and MLFLOW_AUTH_ADMIN_PASSWORD each may
stand in a file that the variable with _FILE behind its name names. MLOPS_ACCOUNTS_DB_URL says where
the accounts are, whatever the file of MLFLOW_AUTH_CONFIG_PATH says.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import secrets
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from mlops.settings import quiet

SECRETS: Final = ("MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD")
FIXED: Final = {
    "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
    "MLFLOW_SERVER_ENABLE_GRAPHQL_AUTH": "true",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "false",
    "MLFLOW_ENABLE_WORKSPACES": "false",
}
"""What MLflow asks its environment for each request, and what nobody may set otherwise here."""
SMALL: Final = 8192
"""Most bytes that a request without a login may have."""
HASHED_AT_ONCE: Final = 4
"""Passwords that a process of the server hashes at once; each takes 32 MiB."""
PIECE: Final = 65536
"""Bytes of an artifact that are in memory at once."""


def create_app() -> Any:
    """Returns the application; called once in each process of the server, without arguments."""
    quiet()
    read_secrets()
    os.environ.update(FIXED)
    from mlflow.server import app, auth  # reads the file of MLFLOW_AUTH_CONFIG_PATH

    from mlops.team.grants import grant_after_making
    from mlops.team.rules import check_request, may_delete_run

    auth.auth_config = auth.auth_config._replace(
        default_permission="NO_PERMISSIONS",
        grant_default_workspace_access=False,
        database_uri=os.environ.get("MLOPS_ACCOUNTS_DB_URL") or auth.auth_config.database_uri,
    )
    for request, validator in auth.BEFORE_REQUEST_VALIDATORS.items():
        if validator is auth.validate_can_delete_run:
            auth.BEFORE_REQUEST_VALIDATORS[request] = may_delete_run
    # Of hooks before a request the first added runs first, of those after one the last: so both
    # of these stand around MLflow's own.
    app.before_request(check_request)
    app.after_request(grant_after_making)
    served = auth.create_app(app)
    equalize_logins(auth.store)
    if served is not app:  # some routes never come to Flask
        native = auth._native_fastapi_routes(served)

        def is_closed(scope: Any) -> bool:
            path, method = scope["path"], scope["method"]
            return auth._scope_matches_native_route(native, scope) and not (
                auth.is_unprotected_route(path)
                or auth._is_native_fastapi_proxy_artifact_path(path, method)
            )

        stream_artifacts(served)
        served.add_middleware(
            LoginFirst, is_closed=is_closed, find_user=auth._authenticate_fastapi_request
        )
    return served


def read_secrets() -> None:
    """Sets in the environment what files say; a variable that is set already stays."""
    for name in SECRETS:
        file = os.environ.get(f"{name}_FILE")
        if file and not os.environ.get(name):
            os.environ[name] = Path(file).read_text("utf-8").strip()


def equalize_logins(store: Any) -> None:
    """Has a wrong login take as long where there is no such account as where there is one."""
    from werkzeug.security import check_password_hash, generate_password_hash

    is_right = store.authenticate_user
    nobodys = generate_password_hash(secrets.token_urlsafe())
    at_once = threading.BoundedSemaphore(HASHED_AT_ONCE)

    def authenticate_user(username: str, password: str, **how: Any) -> bool:
        with at_once:
            if not store.has_user(username, **how):
                check_password_hash(nobodys, password)
                return False
            return bool(is_right(username, password, **how))

    store.authenticate_user = authenticate_user


class LoginFirst:
    """Answers what MLflow would answer too late, or need not be asked at all.

    Only admins come to routes that no team needs (jobs, an assistant, traces), and nobody to the
    gateways: there MLflow looks for a login in a second header. Who sends more than `SMALL` bytes,
    or does not say how many, is asked for the login before they are read.
    """

    def __init__(
        self, app: Any, is_closed: Callable[[Any], bool], find_user: Callable[[Any], Any]
    ) -> None:
        self._app = app
        self._is_closed = is_closed
        self._find_user = find_user

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        app = self._app
        if scope["type"] == "http":
            app = await self._find_refusal(scope) or app
        await app(scope, receive, send)

    async def _find_refusal(self, scope: Any) -> Any:
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse

        asked = Request(scope)
        if scope["path"].startswith("/gateway/"):
            is_known, is_allowed = "authorization" in asked.headers, False
        elif (is_closed := self._is_closed(scope)) or _may_be_large(asked.headers):
            user = await asyncio.to_thread(self._find_user, asked)
            is_known, is_allowed = user is not None, not is_closed or (user and user.is_admin)
        else:
            return None
        if not is_known:
            return PlainTextResponse(
                "Podium: log in first.", 401, {"WWW-Authenticate": 'Basic realm="mlflow"'}
            )
        return None if is_allowed else PlainTextResponse("Podium: this is for admins.", 403)


def _may_be_large(headers: Any) -> bool:
    if "transfer-encoding" in headers:
        return True
    try:
        return int(headers.get("content-length", 0)) > SMALL
    except ValueError:
        return True


# Artifacts that lie in S3. What lies in a folder of the server's, MLflow sends as it is.


def stream_artifacts(served: Any) -> None:
    """Sends artifacts of S3 as they are read; MLflow would first copy each to its disk.

    The routes stand before MLflow's, so its rights are asked of the same paths. What its pages ask
    Flask for is sent on to them: Flask's answers wait in memory for a slow client.
    """
    from fastapi.routing import APIRoute
    from mlflow.server import artifact_router, handlers
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    async def read_artifact(artifact_path: str) -> Any:
        store = handlers._get_artifact_repo_mlflow_artifacts()
        if not isinstance(store, S3ArtifactRepository):
            return await artifact_router.download_artifact(artifact_path)
        return await asyncio.to_thread(_open_artifact, store, artifact_path)

    place = "/{api}/2.0/mlflow-artifacts/artifacts/"
    served.router.routes[:0] = [  # no HEAD: MLflow's rights would not be asked
        APIRoute(
            place.format(api=api) + "{artifact_path:path}",
            read_artifact,
            methods=["GET"],
            response_model=None,
        )
        for api in ("api", "ajax-api")
    ]
    send_of_flask = handlers._send_artifact

    def send_artifact(store: Any, path: str) -> Any:
        if store is not handlers._artifact_repo or not isinstance(store, S3ArtifactRepository):
            return send_of_flask(store, path)
        location = place.format(api="ajax-api") + urllib.parse.quote(path)
        return handlers.Response(status=302, headers={"Location": location})

    handlers._send_artifact = send_artifact


def _open_artifact(store: Any, artifact_path: str) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE
    from mlflow.server.handlers import _content_disposition_attachment
    from mlflow.utils.mime_type_utils import _guess_mime_type
    from mlflow.utils.uri import validate_path_is_safe
    from starlette.responses import Response, StreamingResponse

    try:
        path = validate_path_is_safe(artifact_path)
        bucket, root = store.parse_s3_compliant_uri(store.artifact_uri)
        try:
            found = store._get_s3_client().get_object(Bucket=bucket, Key=posixpath.join(root, path))
        except ClientError as err:
            is_missing = err.response["Error"]["Code"] in ("NoSuchKey", "404")
            code = RESOURCE_DOES_NOT_EXIST if is_missing else TEMPORARILY_UNAVAILABLE
            raise MlflowException(f"There is no artifact {path!r} to read.", code) from err
        except BotoCoreError as err:
            raise MlflowException("The store does not answer.", TEMPORARILY_UNAVAILABLE) from err
    except MlflowException as err:
        content = err.serialize_as_json()
        return Response(content, err.get_http_status_code(), media_type="application/json")
    headers = {
        "Content-Type": _guess_mime_type(path),
        "Content-Length": str(found["ContentLength"]),
        "Content-Disposition": _content_disposition_attachment(posixpath.basename(path)),
        "X-Content-Type-Options": "nosniff",
    }
    return StreamingResponse(_pieces(found["Body"]), headers=headers)


def _pieces(body: Any) -> Iterator[bytes]:
    try:
        yield from body.iter_chunks(PIECE)
    finally:
        body.close()
