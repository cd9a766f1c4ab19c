"""Who is asking: the login that a server authenticated, never a word of the caller's own."""

from __future__ import annotations

from typing import Final

from mlops.errors import MlopsError, without_passwords
from mlops.settings import Settings
from registry.ledger import Actor, Ledger, os_user

_CURRENT_USER: Final = "/api/2.0/mlflow/users/current"
_TIMEOUT_S: Final = 10.0


def find_actor(settings: Settings, ledger: Ledger | None = None) -> Actor:
    """Returns the login of the tracking server, else of the ledger's database, else the OS user.

    A tracking server counts where it tells this login's name, and tells it to nobody without a
    login: one that takes any word proves nothing.

    Args:
        ledger: None for who writes nothing into it.

    Raises:
        MlopsError: the tracking server does not answer.
    """
    name = _server_login(settings)
    if name is not None:
        return Actor(name, "tracking server")
    name = None if ledger is None else ledger.login()
    if name is not None:
        return Actor(name, "database")
    return Actor(os_user(), "operating system")


def in_words(actor: Actor) -> str:
    """Returns the actor, and what the name is worth where it is only the system's word."""
    if actor.known_by == "operating system":
        return f"{actor.name} (only the OS user; no server authenticated the name)"
    return f"{actor.name} (login of the {actor.known_by})"


def _server_login(settings: Settings) -> str | None:
    uri = settings.tracking_uri
    if uri is None or not uri.startswith(("http://", "https://")):
        return None
    import requests
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        creds = get_default_host_creds(uri)
        known = http_request(
            creds, _CURRENT_USER, "GET", timeout=_TIMEOUT_S, max_retries=0, raise_on_status=False
        )
        if known.status_code != 200:
            return None
        stranger = requests.get(
            uri.rstrip("/") + _CURRENT_USER,
            auth=lambda request: request,  # else requests takes a login from ~/.netrc
            timeout=_TIMEOUT_S,
            verify=creds.verify,
        )
    except Exception as err:  # not passed over: a weaker name would stand for the login
        raise MlopsError(
            f"the tracking server at {without_passwords(uri)} does not say who is asking: "
            f"{_innermost(err)}. Try again when it answers."
        ) from err
    try:
        name = known.json()["user"]["username"]
    except (ValueError, KeyError, TypeError):  # a page of some other server's
        return None
    return name if isinstance(name, str) and name and stranger.status_code == 401 else None


def _innermost(err: BaseException) -> str:
    """Returns what an error began with: those around it say it again, at more and more length."""
    while inner := err.__cause__ or err.__context__:
        err = inner
    said = getattr(err, "strerror", None) or str(err) or type(err).__name__
    return without_passwords(str(said).strip().split("\n", 1)[0].rstrip("."))
