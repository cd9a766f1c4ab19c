"""The follower of what is served, and that of the VAE that watches it, as one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from mlops.errors import UsageError
from registry.serving.follower import Accepted, Follower, News
from registry.serving.state import Role, StateFolder


class WatcherFolder(StateFolder):
    """Where a watcher's follower keeps what it accepted; copies lie with those that are served.

    One a watched name and alias: what was seen of one says nothing of another.
    """

    def __init__(self, served: StateFolder, name: str, alias: str) -> None:
        super().__init__(served.path / "watchers" / f"{quote(name, safe='')}@{alias}")
        self._served = served

    @property
    def releases(self) -> Path:
        return self._served.releases

    def create(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)


class Followers:
    """Follows two models; asked as one `Follower` is."""

    def __init__(self, served: Follower, watcher: Follower) -> None:
        self._served = served
        self._watcher = watcher

    @property
    def reachable(self) -> bool:
        return self._served.reachable

    def alias(self, role: Role) -> str:
        return self._of(role).alias(role)

    def look(self) -> list[News]:
        """Returns what is new of both; the champion is looked at first, and waits for nothing."""
        return [*self._served.look(), *self._watcher.look()]

    def find_kept(self) -> list[Accepted]:
        """Returns what was served before this start; a watcher waits for the registry."""
        return self._served.find_kept()

    def not_loaded(self, accepted: Accepted) -> None:
        self._of(accepted.role).not_loaded(accepted)

    def still_verifies(self, held: Accepted) -> bool:
        return self._of(held.role).still_verifies(held)

    def hold(self, accepted: Accepted) -> None:
        self._of(accepted.role).hold(accepted)

    def _of(self, role: Role) -> Follower:
        return self._watcher if role == "watcher" else self._served


def find_watched(watch: str, name: str) -> tuple[str, str]:
    """Returns name and alias of the VAE that watches what is served as `name`.

    Raises:
        UsageError: `watch`, an option of registry.serve, names none.
    """
    from registry.alias import check_alias

    watched, at, alias = watch.partition("@")
    if watched == "auto":
        experiment, is_one, _ = name.rpartition("-classifier")
        if not is_one or not experiment:
            raise UsageError(
                "--watch auto knows the VAE of a model that is called <experiment>-classifier, "
                f"not of {name!r}. Name the VAE, as in --watch digits-vae."
            )
        watched = f"{experiment}-vae"
    alias = check_alias(alias) if at else "champion"
    if not watched or watched == name:
        raise UsageError(
            f"--watch {watch!r} names no other model; expected a promoted VAE, as in "
            "--watch digits-vae."
        )
    return watched, alias
