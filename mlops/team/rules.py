"""What the accounts of a team may ask of MLflow's server, besides what its own rights say.

Checked before MLflow does: both must allow a request. Admins are asked nothing here. For others

- a write must be one that sweeps, promotions or the pages of MLflow make: a closed list, so that
  what MLflow adds (prompts, gateways, jobs, an assistant) stays shut until somebody opens it;
- a request must say one thing only. MLflow 3.17 checks rights on `run_id` and then acts on `runId`
  or `run_uuid`, or checks the query of a DELETE and acts on its body: with two answers in one
  request, who may write one run could write any;
- what is made must be of a name that is the account's to make (`mlops.team.roles`), where the
  server chooses, and not a prompt: a tag would move a model to where no role has a right.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any, Final

from flask import Response, request
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.protos.model_registry_pb2 import (
    CreateModelVersion,
    CreateRegisteredModel,
    SetModelVersionTag,
    SetRegisteredModelTag,
)
from mlflow.protos.service_pb2 import CreateExperiment, UpdateExperiment
from mlflow.server import auth
from mlflow.server.handlers import (
    _get_request_message,
    _get_tracking_store,
    catch_mlflow_exception,
)
from werkzeug.datastructures import Authorization

from mlops.team.roles import Resource, kind_of, why_not_make

READS: Final = ("GET", "HEAD", "OPTIONS")
SEARCHES: Final = ("search", "search-datasets", "get-latest-versions", "graphql")
SOURCES: Final = ("runs:/", "models:/", "mlflow-artifacts:/")
"""Where the bytes of a version may lie: where the server's rights are asked."""
PROMPTS: Final = "mlflow.prompt."
"""How the tags begin that make a prompt of a model."""
ADMINS_READS: Final = ("mlflow/users/list",)
"""What others than admins do not read: who has an account, and who is admin."""

_ID: Final = "[^/]+"
WRITES: Final = {
    "POST": (
        "graphql",
        "mlflow/experiments/"
        "(create|update|delete|restore|search|search-datasets|set-experiment-tag|delete-experiment-tag)",
        "mlflow/runs/(create|update|delete|restore|search|outputs|log-metric|log-batch|log-parameter"
        "|log-inputs|log-model|set-tag|delete-tag)",
        "mlflow/upload-artifact",
        "mlflow/registered-models/(create|search|alias|set-tag|get-latest-versions)",
        "mlflow/model-versions/(create|search|set-tag)",
        f"mlflow/logged-models(/search|/{_ID}/params)?",
        "mlflow/traces/search",
    ),
    "PUT": ("mlflow-artifacts/artifacts/.+",),
    "PATCH": (
        "mlflow/registered-models/update",
        "mlflow/model-versions/update",
        f"mlflow/logged-models/{_ID}(/tags)?",
        "mlflow/users/update-password",
    ),
    "DELETE": (
        "mlflow-artifacts/artifacts/.+",
        f"mlflow/logged-models/{_ID}(/tags/{_ID})?",
    ),
}
"""What others than admins may ask for, as patterns of a path; MLflow's rights say of what."""
_WRITES: Final = {method: re.compile("|".join(paths)) for method, paths in WRITES.items()}
_VERSIONED: Final = re.compile(r"/(?:ajax-)?api/[23]\.0/")


@catch_mlflow_exception  # type: ignore[untyped-decorator, unused-ignore]
def check_request() -> Response | None:
    """Answers with 401, 403 or 400 what the account may not ask for; a hook of Flask's."""
    path = plain_path()
    is_read = request.method in READS and path not in ADMINS_READS
    if is_read or auth.is_unprotected_route(request.path):
        return None
    login = auth.authenticate_request()
    if not isinstance(login, Authorization):
        refused: Response = login  # by MLflow, which would hash the password once more
        return refused
    user = auth.store.get_user(login.username)
    if user.is_admin:
        return None
    allowed = _WRITES.get(request.method)
    if allowed is None or not allowed.fullmatch(path):
        raise _refused(
            f"{request.method} {request.path} is for admins: Podium's accounts offer what sweeps, "
            "promotions and the pages of MLflow ask for."
        )
    _refuse_two_answers(path)
    rule = _RULES.get((request.method, path))
    if rule is not None:
        rule(user.id)
    return None


def plain_path() -> str:
    """Returns the request's path without the version of the API: MLflow serves each twice."""
    return _VERSIONED.sub("", request.path, count=1).removeprefix("/")


def _refuse_two_answers(path: str) -> None:
    if path == "mlflow/upload-artifact":
        given = [name for name, _ in request.args.items(multi=True)]
        if sorted(given) != ["path", "run_uuid"]:
            raise MlflowException.invalid_parameter_value(
                f"expected the parameters path and run_uuid, once each; got {sorted(given)}."
            )
        return
    if request.args:
        raise MlflowException.invalid_parameter_value(
            f"expected no parameters in the URL of a {request.method}; got {sorted(request.args)}."
        )
    if path.startswith("mlflow-artifacts/") or not request.get_data(cache=True):
        return
    body = request.get_json(silent=True) if request.is_json else None
    if not isinstance(body, dict):
        raise MlflowException.invalid_parameter_value(
            "expected a JSON object with the content type application/json."
        )
    if path.rpartition("/")[2] in SEARCHES:
        return
    odd = sorted(name for name in body if name != name.lower())
    if odd:
        raise MlflowException.invalid_parameter_value(
            f"expected the names of fields as MLflow's reference has them, as in run_id; got {odd}."
        )
    if len({body[name] for name in ("run_id", "run_uuid") if _is_text(body.get(name))}) > 1:
        raise MlflowException.invalid_parameter_value(
            "expected one run; run_id and run_uuid name two."
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


# What is made, and how it is called.


def _create_experiment(user_id: int) -> None:
    asked = _get_request_message(CreateExperiment())
    if asked.artifact_location:
        raise _refused(
            "the server chooses where the artifacts of an experiment lie; expected no "
            "artifact_location. An admin may choose another place."
        )
    _may_make(user_id, "experiment", asked.name)


def _update_experiment(user_id: int) -> None:
    asked = _get_request_message(UpdateExperiment())
    _refuse_odd_name(asked.new_name)
    name = _get_tracking_store().get_experiment(asked.experiment_id).name
    if "releases" in (kind_of("experiment", name), kind_of("experiment", asked.new_name)):
        raise _refused(
            f"the experiment {name!r} cannot be called {asked.new_name!r}: an experiment of "
            "releases is neither renamed nor made by a new name, but by an admin."
        )


def _create_model(user_id: int) -> None:
    asked = _get_request_message(CreateRegisteredModel())
    _refuse_prompts(tag.key for tag in asked.tags)
    _may_make(user_id, "registered_model", asked.name)


def _create_version(user_id: int) -> None:
    asked = _get_request_message(CreateModelVersion())
    _refuse_prompts(tag.key for tag in asked.tags)
    _may_make(user_id, "registered_model", asked.name)
    if not asked.source.startswith(SOURCES):
        raise _refused(
            f"a version's source is part of a run or of another version; expected runs:/RUN/PATH, "
            f"got {asked.source[:100]!r}."
        )


def _set_model_tag(user_id: int) -> None:
    _refuse_prompts([_get_request_message(SetRegisteredModelTag()).key])


def _set_version_tag(user_id: int) -> None:
    _refuse_prompts([_get_request_message(SetModelVersionTag()).key])


_RULES: Final[dict[tuple[str, str], Callable[[int], None]]] = {
    ("POST", "mlflow/experiments/create"): _create_experiment,
    ("POST", "mlflow/experiments/update"): _update_experiment,
    ("POST", "mlflow/registered-models/create"): _create_model,
    ("POST", "mlflow/registered-models/set-tag"): _set_model_tag,
    ("POST", "mlflow/model-versions/create"): _create_version,
    ("POST", "mlflow/model-versions/set-tag"): _set_version_tag,
}


def _may_make(user_id: int, resource: Resource, name: str) -> None:
    _refuse_odd_name(name)
    roles = {role.name for role in auth.store.list_user_roles(user_id)}
    why_not = why_not_make(roles, resource, name)
    if why_not is not None:
        raise _refused(why_not)


def _refuse_odd_name(name: str) -> None:
    why_not = why_odd(name)
    if why_not is not None:
        raise MlflowException.invalid_parameter_value(
            f"{name[:100]!r} is no name that can be given; {why_not}."
        )


def why_odd(name: str) -> str | None:
    """Returns what is wrong with a name for people and rights alike; None where nothing is.

    Rights go by names: two that look the same would be taken for each other, and `*` is how MLflow
    calls everything of a kind.
    """
    if name != name.strip() or name.endswith("."):
        return "expected no white space at its ends, and no dot at its end"
    if any(_is_unseen(letter) for letter in name):
        return "expected letters that can be seen, and plain spaces"
    if name and not name.strip("*?%"):
        return "expected more than a wildcard"
    return None


def _is_unseen(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp", "Zs") and letter != " "


def _refuse_prompts(keys: Iterable[str]) -> None:
    for key in keys:
        if key.strip().casefold().startswith(PROMPTS):
            raise _refused(f"the tag {key!r} makes a prompt of a model; expected another tag.")


def _refused(why: str) -> MlflowException:
    return MlflowException(why, error_code=PERMISSION_DENIED)


# Whom MLflow's own rules would let do too little.


def may_delete_run() -> bool:
    """Tells whether the account may mark a run as deleted, or as not deleted.

    MLflow asks for the right to delete the experiment, which who made it has alone. Of two runs
    that a lost answer has made of one, any trainer's drain takes the second away: so whoever writes
    in the experiment may. The bytes stay. A run of a release is an admin's.
    """
    if auth.validate_can_delete_run():
        return True
    run = auth._fetch_or_none(_get_tracking_store().get_run, auth._get_request_param("run_id"))
    if run is None:
        return False
    name = _get_tracking_store().get_experiment(run.info.experiment_id).name
    return kind_of("experiment", name) == "sweeps" and bool(auth.validate_can_update_run())
