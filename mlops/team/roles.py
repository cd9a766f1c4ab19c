"""Who may do what: pure, by the name of an experiment or of a registered model.

A trainer owns what sweeps make: experiments, and models named `<name>-candidates`. A promoter owns
what promotions make: experiments named `<name>-releases`, and the other models. What belongs to
whom follows from its name alone, so nobody can make the other's before it is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Final, Literal

RoleName = Literal["viewer", "trainer", "promoter", "server"]
Resource = Literal["experiment", "registered_model"]
Kind = Literal["sweeps", "releases"]

ROLES: Final[Mapping[RoleName, str]] = {
    "viewer": "reads everything",
    "trainer": "runs sweeps: writes experiments and candidates, and reads everything",
    "promoter": "makes releases and moves aliases, and reads everything",
    "server": "reads releases, and nothing else",
}
"""Every role, and what it does."""

RESOURCES: Final[tuple[Resource, ...]] = ("experiment", "registered_model")
READERS: Final[tuple[RoleName, ...]] = ("viewer", "trainer", "promoter")
"""The roles that read all experiments and models, those to come too."""

RELEASES: Final = "-releases"
CANDIDATES: Final = "-candidates"
_WHAT: Final[Mapping[tuple[Resource, Kind], str]] = {
    ("experiment", "sweeps"): f"experiments, but for those named *{RELEASES}",
    ("experiment", "releases"): f"experiments named *{RELEASES}",
    ("registered_model", "sweeps"): f"models named *{CANDIDATES}",
    ("registered_model", "releases"): f"models, but for those named *{CANDIDATES}",
}


def kind_of(resource: Resource, name: str) -> Kind:
    """Returns whether a name is of a sweep's making or of a promotion's.

    Case and spaces at the ends count for nothing: not every database tells them apart.
    """
    plain = name.strip().casefold()
    if resource == "experiment":
        return "releases" if plain.endswith(RELEASES) else "sweeps"
    return "sweeps" if plain.endswith(CANDIDATES) else "releases"


def grants_of(resource: Resource, name: str) -> dict[RoleName, str]:
    """Returns what roles are granted on one experiment or model, besides what `READERS` read.

    A promoter writes tags of the candidates that were decided on.
    """
    if kind_of(resource, name) == "releases":
        return {"promoter": "EDIT", "server": "READ"}
    if resource == "registered_model":
        return {"trainer": "EDIT", "promoter": "EDIT"}
    return {"trainer": "EDIT"}


def is_deleted_by_maker(resource: Resource, name: str) -> bool:
    """Tells whether the account that made something may delete it; else an admin may."""
    return resource == "experiment" and kind_of(resource, name) == "sweeps"


def why_not_make(roles: Set[str], resource: Resource, name: str) -> str | None:
    """Returns None where an account of these roles may make what is called so, else why not."""
    kind = kind_of(resource, name)
    maker: RoleName = "trainer" if kind == "sweeps" else "promoter"
    if maker in roles:
        return None
    return (
        f"{name!r} is not for this account to make; {_WHAT[resource, kind]} are made by the role "
        f"{maker}. Log in with an account of that role; an admin makes one by: python -m "
        f"mlops.init account NAME --role {maker}"
    )
