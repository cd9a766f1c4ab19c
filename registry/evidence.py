"""What a decision rests on: figures and answers, measured once, as plain values.

`probe.py` measures what needs the model loaded, `promote.py` collects the rest, `gates.py` judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mlops.evaluation import Score
from mlops.packaging import ModelSpec
from registry.replayed import Replay


@dataclass(frozen=True, slots=True)
class Serving:
    """What one request of one row takes in a real `mlflow models serve` with one worker.

    Attributes:
        n_requests: Requests that were timed, one after another.
        p50_ms: Median time of a request, in milliseconds.
        p95_ms: Its 95th percentile.
        memory_bytes: Resident memory of all processes of the server after those requests.
    """

    n_requests: int
    p50_ms: float
    p95_ms: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The code that a model was trained from, as its sweep noted it.

    Attributes:
        sha: The commit; None where the sweep ran outside a repository.
        is_dirty: Whether files differed from it; None where that is unknown.
    """

    sha: str | None
    is_dirty: bool | None


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One model on the stored test rows.

    Attributes:
        spec: What it is.
        answers: Its answers, float64: probabilities (n, classes) of a classifier, ELBO at the
            posterior's mean (n,) of a VAE, in nats.
        score: What they are worth.
        perturbed: Its scores on the same rows changed a little, by the name of the change:
            "noise", and for images "shift".
        size_bytes: All files of its folder.
        n_seen: Test rows that stand, with the same content, in the rows it was trained or chosen
            on; None where that dataset is not in the store.
    """

    spec: ModelSpec
    answers: npt.NDArray[np.float64]
    score: Score
    size_bytes: int
    n_seen: int | None = None
    perturbed: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Champion:
    """The present champion. `measured` is None where it does not take the candidate's rows."""

    version: int
    spec: ModelSpec
    measured: Measured | None


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """All that is known when a decision is made.

    Attributes:
        candidate: The candidate on the stored test rows.
        champion: The present champion on the same rows; None where there is none, or it has a
            fault.
        champion_fault: Why the champion is not compared with: it does not verify, or not answer.
        labels: (n,) int64, the true classes; None for a VAE.
        n_decisions: Decisions made on this dataset's test rows before this one.
        isolation: How the candidate was loaded: "no network", or why it was not kept from it.
        commit: The code it was trained from.
        reproduced: What a reproduction of its run found ("identical"); None where none was made.
        serving: What it takes to serve the candidate; None where that was not measured.
        alias: What the candidate is to be given.
        replay: What a server saw of the candidate beside the champion; None where nobody said.
        replay_fault: Why that is not about this decision; "" where it is.
    """

    candidate: Measured
    champion: Champion | None = None
    labels: npt.NDArray[np.int64] | None = None
    n_decisions: int = 0
    isolation: str = "no network"
    commit: Commit = Commit(None, None)
    reproduced: str | None = None
    serving: Serving | None = None
    champion_fault: str = ""
    alias: str = "champion"
    replay: Replay | None = None
    replay_fault: str = ""
