"""MLflow's accounts with Podium's rules before them: `mlflow server --app-name podium-accounts`.

MLflow's own application does the logins, the rights and all the work. What it lacks for a team is
that a name says who may make something: any account could make `digits-releases`, or a model that
looks like a release, or an experiment that lies in any folder of the server. `mlops.team.rules`
refuses that, and `mlops.team.grants` grants the roles their rights on what is made.

Secrets may be files: of MLFLOW_FLASK_SERVER_SECRET_KEY and MLFLOW_AUTH_ADMIN_PASSWORD each may
stand in a file that the variable with _FILE behind its name names. MLOPS_ACCOUNTS_DB_URL says where
the accounts are, whatever the file of MLFLOW_AUTH_CONFIG_PATH says.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
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
    if served is not app:  # some routes never come to Flask
        native = auth._native_fastapi_routes(served)

        def is_closed(scope: Any) -> bool:
            path, method = scope["path"], scope["method"]
            return auth._scope_matches_native_route(native, scope) and not (
                auth.is_unprotected_route(path)
                or auth._is_native_fastapi_proxy_artifact_path(path, method)
            )

        served.add_middleware(
            ClosedRoutes, is_closed=is_closed, find_user=auth._authenticate_fastapi_request
        )
    return served


def read_secrets() -> None:
    """Sets in the environment what files say; a variable that is set already stays."""
    for name in SECRETS:
        file = os.environ.get(f"{name}_FILE")
        if file and not os.environ.get(name):
            os.environ[name] = Path(file).read_text("utf-8").strip()


class ClosedRoutes:
    """Keeps all but admins from routes that no team needs: gateways, jobs, an assistant, traces."""

    def __init__(
        self, app: Any, is_closed: Callable[[Any], bool], find_user: Callable[[Any], Any]
    ) -> None:
        self._app = app
        self._is_closed = is_closed
        self._find_user = find_user

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse

        if scope["type"] == "http" and self._is_closed(scope):
            user = await asyncio.to_thread(self._find_user, Request(scope))
            # Who is not logged in is told so by MLflow.
            if user is not None and not user.is_admin:
                refused = PlainTextResponse("Podium: this is for admins.", status_code=403)
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)
