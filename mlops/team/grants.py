"""What roles are granted on an experiment or a model, as soon as it is made.

MLflow gives whoever makes something every right on it, and nobody else any. Here the roles get
theirs, by its name (`mlops.team.roles`), and its maker keeps no more than the role has; but for an
experiment of sweeps, which the trainer who made it may delete.

A crash between the making and the grants leaves something that only an admin can write, or whose
maker could delete it. `python -m mlops.init accounts` mends both, on all that is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from flask import Response, g, request
from mlflow.exceptions import MlflowException
from mlflow.protos.model_registry_pb2 import CreateRegisteredModel, RenameRegisteredModel
from mlflow.protos.service_pb2 import CreateExperiment, UpdateExperiment
from mlflow.server import auth
from mlflow.server.handlers import _get_request_message
from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME

from mlops.team.accounts import EVERYTHING
from mlops.team.roles import ROLES, Resource, grants_of, is_deleted_by_maker
from mlops.team.rules import plain_path


def grant_after_making(response: Response) -> Response:
    """Grants on what the request has made or renamed; a hook of Flask's."""
    made = _MAKING.get(plain_path())
    if made is not None and request.method == "POST" and response.status_code == 200:
        made(response)
    return response


def _created_experiment(response: Response) -> None:
    experiment_id = str(response.get_json()["experiment_id"])
    name = _get_request_message(CreateExperiment()).name
    _settle("experiment", experiment_id, name)
    maker = auth.store.get_user(g.mlflow_authenticated_user)
    if is_deleted_by_maker("experiment", name) and not maker.is_admin:
        auth.store.grant_user_permission(maker.username, "experiment", experiment_id, "MANAGE")


def _renamed_experiment(_: Response) -> None:
    asked = _get_request_message(UpdateExperiment())
    if is_deleted_by_maker("experiment", asked.new_name):
        _grant_to_roles("experiment", asked.experiment_id, asked.new_name)
    else:
        _settle("experiment", asked.experiment_id, asked.new_name)


def _created_model(_: Response) -> None:
    name = _get_request_message(CreateRegisteredModel()).name
    _settle("registered_model", name, name)


def _renamed_model(_: Response) -> None:
    name = _get_request_message(RenameRegisteredModel()).new_name
    _settle("registered_model", name, name)


_MAKING: Final[dict[str, Callable[[Response], None]]] = {
    "mlflow/experiments/create": _created_experiment,
    "mlflow/experiments/update": _renamed_experiment,
    "mlflow/registered-models/create": _created_model,
    "mlflow/registered-models/rename": _renamed_model,
}


def _settle(resource: Resource, key: str, name: str) -> None:
    """Leaves the roles' grants on something, and no account's own.

    Of one that had the same key and is gone, too: SQLite gives the number of an experiment again.
    A model that an admin calls by MLflow's wildcard gets none: they would be grants on all models.
    """
    if key == EVERYTHING:
        return
    auth.store.delete_grants_for_resource(resource, key)
    _grant_to_roles(resource, key, name)


def _grant_to_roles(resource: Resource, key: str, name: str) -> None:
    wanted = grants_of(resource, name)
    for role in ROLES:
        role_id = _find_role(role)
        if role_id is None:
            continue
        granted = wanted.get(role)
        for found in auth.store.list_role_permissions(role_id):
            if (found.resource_type, found.resource_pattern) == (resource, key):
                if found.permission == granted:
                    granted = None
                else:
                    auth.store.remove_role_permission(found.id)
        if granted is not None:
            _add(role_id, resource, key, granted)


def _find_role(name: str) -> int | None:
    """Returns a role's number; None before `python -m mlops.init accounts`, which grants on all."""
    try:
        return int(auth.store.get_role_by_name(DEFAULT_WORKSPACE_NAME, name).id)
    except MlflowException as err:
        if err.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _add(role_id: int, resource: Resource, key: str, permission: str) -> None:
    try:
        auth.store.add_role_permission(role_id, resource, key, permission)
    except MlflowException as err:  # another process of the server was quicker
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
