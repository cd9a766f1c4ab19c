"""One server that serves a model, as its own pages tell; pure.

A replica answers on its metrics port: `/model` says what it serves, `/metrics` what it counted, and
`/drift` whether its traffic is what the model was tested with. What comes from there may be of a
stranger's server: each value is taken only as the type that it must have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

State = Literal["answers", "starting", "silent", "killed"]
Page = tuple[int, bytes]
"""The status and the content of an answer."""
NOT_WATCHED: Final = "not watched"
NO_REPLICA: Final = "answers as no server of Podium's does"


@dataclass(frozen=True, slots=True)
class Answering:
    """A release that answers in one of a server's two roles.

    Attributes:
        since: When all its workers had it; aware.
    """

    alias: str
    version: int
    since: datetime | None = None
    statement_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What was asked of a replica since its start.

    Attributes:
        n_requests: All that were answered, errors too.
        n_failed: Answered with an error that is the server's: failed, or too many at once.
        n_bad_input: Answered with an error that is the caller's.
        p50_ms: Milliseconds that half of the champion's answers took at most, interpolated in the
            buckets of its histogram; None where nothing was asked. So is `p95_ms`.
    """

    n_requests: int = 0
    n_failed: int = 0
    n_bad_input: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None

    @property
    def failed_share(self) -> float | None:
        """0 to 1; None where nothing was asked."""
        return self.n_failed / self.n_requests if self.n_requests else None


@dataclass(frozen=True, slots=True)
class Drift:
    """Whether the traffic drifted from what the release was tested with.

    Attributes:
        state: "unknown" where nobody watches, "waiting" while no window is full.
        words: The same for people, with the figures.
        figures: What `/drift` answered; {} where nothing.
    """

    state: Literal["none", "drifted", "waiting", "unknown"]
    words: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Replica:
    """How a replica stands.

    Attributes:
        url: Of its metrics port.
        state: "killed": it left its address in this home, and no process holds its folder.
        reason: Why it does not answer, to go on from its address; "" where it does.
        name: The model; None where that is not known.
        alias: What it was started for; None where that is not known.
        champion: What answers; None where nothing does.
        challenger: What is compared with it, or answers a share.
        workers_wanted: None of a server that does not say.
        refused: How many releases it refused, by why; nothing where none.
        follows: Whether it reaches the registry; None where it does not say.
        verifies: Whether what answers verifies with its keys; None where it does not say.
    """

    url: str
    state: State
    reason: str = ""
    name: str | None = None
    alias: str | None = None
    champion: Answering | None = None
    challenger: Answering | None = None
    workers: int = 0
    workers_wanted: int | None = None
    traffic: Traffic = Traffic()
    refused: Mapping[str, int] = field(default_factory=dict)
    n_restarts: int = 0
    follows: bool | None = None
    verifies: bool | None = None
    drift: Drift = Drift("unknown", NOT_WATCHED)

    def answering(self, alias: str) -> Answering | None:
        """Returns what it answers with for an alias, in whichever role."""
        for one in (self.champion, self.challenger):
            if one is not None and one.alias == alias:
                return one
        return None

    def is_of(self, alias: str) -> bool:
        """Tells whether it serves, or shall serve, what holds an alias."""
        return self.alias == alias or self.answering(alias) is not None

    def faults(self, alias: str, version: int | None) -> tuple[str, ...]:
        """Returns why it is not healthy, in words that go on from its address; none is good.

        Args:
            version: What the alias holds by the registry; None where that is not known.
        """
        if self.state != "answers":
            return (self.reason,)
        found = self.answering(alias)
        faults = []
        if found is None:
            faults.append(f"answers with no {alias}")
        elif version is not None and found.version != version:
            faults.append(f"answers with version {found.version}, and {alias} is {version}")
        if self.workers < 1:
            faults.append("has no worker that answers")
        elif self.workers < (self.workers_wanted or 0):
            faults.append(f"has {self.workers} of {self.workers_wanted} workers")
        if self.verifies is False:
            faults.append("answers with what does not verify with its keys any more")
        if self.follows is False:
            faults.append("does not reach the registry")
        return tuple(faults)


def read_replica(url: str, model: Page, metrics: Page | None, drift: Page | None) -> Replica:
    """Returns what a server's pages say.

    Args:
        model: Of `/model`; the others are None where they could not be had.
    """
    told = _object(model)
    if told is None:
        is_starting = model[0] == 404 and "is being loaded" in _sentence(model)
        if is_starting:
            return Replica(url, "starting", "is starting: it loads its first release")
        return Replica(url, "silent", NO_REPLICA)
    champion, name = _answering(told), _text(told.get("name"))
    if champion is None or name is None:
        return Replica(url, "silent", NO_REPLICA)
    counted = {} if metrics is None or metrics[0] != 200 else read_metrics(metrics[1])
    other = told.get("challenger")
    return Replica(
        url,
        "answers",
        name=name,
        alias=champion.alias,
        champion=champion,
        challenger=_answering(other) if isinstance(other, dict) else None,
        workers=_number(told.get("workers")) or 0,
        workers_wanted=_number(told.get("workers_wanted")),
        traffic=read_traffic(counted),
        refused=_by_label(counted, "podium_refused_releases_total", "reason"),
        n_restarts=int(_sum(counted.get("podium_server_restarts_total", ()))),
        follows=_flag(counted, "podium_registry_reachable"),
        verifies=_flag(counted, "podium_release_verifies", role="champion"),
        drift=Drift("unknown", NOT_WATCHED) if drift is None else read_drift(drift),
    )


Samples = Iterable[tuple[Mapping[str, str], float]]
"""The labels and the value of each line of one metric."""


def read_metrics(content: bytes) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Returns the samples of a page in Prometheus' text format by name; {} where it is none."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    try:
        for family in text_string_to_metric_families(content.decode()):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    found.setdefault(sample.name, []).append((sample.labels, sample.value))
    except (ValueError, IndexError, KeyError):  # what its parser meets in a page of another make
        return {}
    return found


def read_traffic(counted: Mapping[str, Samples]) -> Traffic:
    """Returns what the counters of a replica say."""
    results = _by_label(counted, "podium_requests_total", "result")
    buckets = [
        (float(labels["le"]), value)
        for labels, value in counted.get("podium_request_seconds_bucket", ())
        if labels.get("role") == "champion" and "le" in labels
    ]
    return Traffic(
        sum(results.values()),
        results.get("failed", 0) + results.get("overloaded", 0),
        results.get("bad_input", 0),
        quantile_ms(buckets, 0.5),
        quantile_ms(buckets, 0.95),
    )


def quantile_ms(buckets: Iterable[tuple[float, float]], q: float) -> float | None:
    """Returns a quantile of a histogram in milliseconds, interpolated within its bucket.

    Args:
        buckets: The upper bound of each in seconds, and how many were at most that.
        q: 0 to 1.

    Returns:
        None where nothing was counted. What is above the last finite bound counts as that bound.
    """
    below, counted = 0.0, 0.0
    ordered = sorted(buckets)
    if not ordered or ordered[-1][1] <= 0:
        return None
    wanted = q * ordered[-1][1]
    for bound, up_to in ordered:
        if up_to >= wanted and up_to > counted:
            if math.isinf(bound):
                return 1000 * below
            share = (wanted - counted) / (up_to - counted)
            return 1000 * (below + share * (bound - below))
        below, counted = bound, up_to
    return None


def read_drift(page: Page) -> Drift:
    """Returns what the page `/drift` says."""
    told = _object(page)
    if told is None:
        return _read_no_drift(page)
    size, n_windows = _number(told.get("window_rows")), _number(told.get("windows"))
    if not n_windows:
        return Drift("waiting", "no window is full yet", told)
    shown = ", ".join([*_drift_figures(told), _windows(n_windows, size)])
    if told.get("drifted") is not True:
        return Drift("none", f"none ({shown})", told)
    since = _time(told.get("drifted_since"))
    when = "" if since is None else f" since {since:%Y-%m-%d %H:%M} UTC"
    return Drift("drifted", f"DRIFTED{when} ({shown})", told)


def _read_no_drift(page: Page) -> Drift:
    """Takes the sentence that a server says why there is nothing to tell."""
    said = _sentence(page)
    if page[0] != 404 or not said or said.startswith("nothing here"):  # one that knows no such page
        return Drift("unknown", NOT_WATCHED)
    return Drift("waiting" if said.startswith("no window is full yet") else "unknown", said)


def _drift_figures(told: Mapping[str, Any]) -> list[str]:
    watcher, version = _text(told.get("watcher")), _number(told.get("watcher_version"))
    figures = [] if watcher is None else [f"{watcher} version {version or '?'}"]
    for label, key in (("PSI", "psi"), ("KS", "ks"), ("p", "ks_p")):
        value = _real(told.get(key))
        figures += [] if value is None else [f"{label} {value:.3g}"]
    n_dropped = _number(told.get("n_dropped"))
    return figures + ([f"{n_dropped:,} rows not scored"] if n_dropped else [])


def _windows(n: int, size: int | None) -> str:
    return f"{n:,} window{'s' if n > 1 else ''}" + (f" of {size:,} rows" if size else "")


def _answering(told: Mapping[str, Any]) -> Answering | None:
    alias, version = _text(told.get("alias")), _number(told.get("version"))
    if alias is None or version is None:
        return None
    return Answering(alias, version, _time(told.get("since")), _text(told.get("statement_sha256")))


def _object(page: Page) -> dict[str, Any] | None:
    try:
        told = json.loads(page[1]) if page[0] == 200 else None
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def _sentence(page: Page) -> str:
    return " ".join(page[1][:300].decode("utf-8", "replace").split()).rstrip(".")


def _text(value: Any) -> str | None:
    return value[:300] if isinstance(value, str) and value else None


def _number(value: Any) -> int | None:
    """A number of things; a flag is none."""
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _real(value: Any) -> float | None:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_real and math.isfinite(value) else None


def _time(value: Any) -> datetime | None:
    """A time in ISO 8601 or in seconds since 1970; aware UTC."""
    try:
        if isinstance(value, str):
            return datetime.fromisoformat(value).astimezone(UTC)
        seconds = _real(value)
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _by_label(counted: Mapping[str, Samples], name: str, label: str) -> dict[str, int]:
    """The sums of a counter by one of its labels, but for those that are zero."""
    found: dict[str, float] = {}
    for labels, value in counted.get(name, ()):
        key = labels.get(label, "")
        found[key] = found.get(key, 0.0) + value
    return {key: int(value) for key, value in found.items() if value}


def _sum(samples: Samples) -> float:
    return sum(value for _, value in samples)


def _flag(counted: Mapping[str, Samples], name: str, **labels: str) -> bool | None:
    for found, value in counted.get(name, ()):
        if labels.items() <= found.items():
            return value != 0
    return None
