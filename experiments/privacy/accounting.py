"""What a private training promises, and what trainings have spent: epsilon and delta, accounted.

The promise is (epsilon, delta)-differential privacy of the training rows, where two sets of rows
are neighbours if one has one row more (Dwork & Roth 2014, definition 2.4). The mechanism is DP-SGD
(Abadi et al. 2016, section 3.1, algorithm 1): each step draws every row with the chance q, clips
each row's gradient to the L2 norm C, and adds to their sum Gaussian noise of standard deviation
noise_multiplier * C. `experiments.privacy.passes` does that.

Its cost is accounted by privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022) as
`dp-accounting` computes them, an upper bound, where Abadi et al. had the moments accountant and
Mironov 2017 Renyi's divergences. A composition of steps is a convolution.

Nothing here needs JAX: the driver accounts, and so do tests.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

CLIP: Final = 1.0
LARGEST_EPSILON: Final = 100.0
"""Above, the promise says nothing: an event becomes up to exp(epsilon) times as likely."""
COARSE: Final = 1e-3
FINE: Final = 2e-4
"""Widths of the bins that privacy losses are rounded to. Fine ones take five times as long, and pay
where there is little to bound."""
FINE_BELOW: Final = 2.0
"""Epsilons that are bound by fine bins. Above, the two differ by little."""
ORDERS: Final = (*range(2, 64), 128, 256, 512)
"""Of Renyi's divergences, to begin a search with; fractions between them converge slowly."""
DIGITS: Final = 4
"""Of a noise multiplier, after the point; it is rounded up."""
_TOLERANCE: Final = 2e-3


@dataclass(frozen=True, slots=True)
class Mechanism:
    """The steps of a private training.

    Attributes:
        noise_multiplier: Standard deviation of the noise in units of the clipping norm, above 0.
        rate: The chance of each row to be in a step's batch, above 0 and at most 1.
        steps_per_epoch: An epoch is so many steps, whichever rows they draw.
    """

    noise_multiplier: float
    rate: float
    steps_per_epoch: int


@dataclass(frozen=True, slots=True)
class Privacy:
    """What one training may spend, and how it keeps to that.

    Attributes:
        epsilon: Spent, at most, once all epochs are trained.
        delta: The probability with which the bound may not hold.
        clip: The L2 norm that each row's gradient is clipped to.
        n_rows: Training rows; taken to be no secret.
    """

    epsilon: float
    delta: float
    clip: float
    n_rows: int
    mechanism: Mechanism

    def params(self) -> dict[str, float]:
        """Returns what a run says of it."""
        return {
            "dp_epsilon": self.epsilon,
            "dp_delta": self.delta,
            "dp_clip": self.clip,
            "dp_noise_multiplier": self.mechanism.noise_multiplier,
        }

    def spent(self, n_epochs: int) -> float:
        """Returns the epsilon of the first epochs, at `delta`."""
        return compose([(self.mechanism, n_epochs)], self.delta)


def default_delta(n_rows: int) -> float:
    """Returns 1e-5, or 1 / (10 n) of more than 10,000 rows.

    To publish one row in n, chosen by chance, has epsilon 0 and delta 1/n: delta must be well below
    that. Dwork & Roth 2014, section 2.3.
    """
    return min(1e-5, 0.1 / n_rows)


def plan(
    epsilon: float, delta: float, clip: float, *, n_rows: int, batch_size: int, epochs: int
) -> Privacy:
    """Returns how a training keeps to a budget: with the least noise that does.

    Args:
        batch_size: Rows of a step, on average.
    """
    rate = min(1.0, batch_size / n_rows)
    steps = math.ceil(n_rows / batch_size)
    noise = calibrate(epsilon, delta, rate, steps * epochs)
    return Privacy(epsilon, delta, clip, n_rows, Mechanism(noise, rate, steps))


@functools.cache
def calibrate(epsilon: float, delta: float, rate: float, n_steps: int) -> float:
    """Returns the least noise multiplier of steps that together cost at most `epsilon`.

    It is within two thousandths, and rounded up. Renyi's divergences (Mironov 2017, proposition 3)
    bound the same steps more loosely and far faster: there the search begins.

    Args:
        epsilon: Above 0, at most `LARGEST_EPSILON`.
        delta: Above 0, below 1.
        rate: The chance of each row to be in a step.
    """

    def is_enough(noise: float) -> bool:
        return compose([(Mechanism(noise, rate, 1), n_steps)], delta) <= epsilon

    high = _calibrate_loosely(epsilon, delta, rate, n_steps)
    while not is_enough(high):
        high *= 1.25
    low = 0.8 * high
    while is_enough(low):
        low, high = 0.8 * low, low
    while high - low > _TOLERANCE * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return _round_up(high)


def _calibrate_loosely(epsilon: float, delta: float, rate: float, n_steps: int) -> float:
    import dp_accounting

    def steps(noise: float) -> Any:
        sampled = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        return dp_accounting.SelfComposedDpEvent(sampled, n_steps)

    def accountant() -> Any:
        return dp_accounting.rdp.RdpAccountant(ORDERS)

    found = dp_accounting.calibrate_dp_mechanism(accountant, steps, epsilon, delta, tol=0.01)
    return max(0.1, float(found))


def compose(trainings: Iterable[tuple[Mechanism, int]], delta: float) -> float:
    """Returns the epsilon, at `delta`, of private trainings of the same rows together.

    Each may have been chosen by what the ones before it gave away.

    Args:
        trainings: Each with the epochs that it was trained.
    """
    n_steps: dict[tuple[float, float], int] = {}
    for one, n_epochs in trainings:
        key = (one.noise_multiplier, one.rate)
        n_steps[key] = n_steps.get(key, 0) + n_epochs * one.steps_per_epoch
    return _compose(tuple(sorted((key, n) for key, n in n_steps.items() if n)), delta)


@functools.lru_cache(maxsize=4096)
def _compose(steps: tuple[tuple[tuple[float, float], int], ...], delta: float) -> float:
    if not steps:
        return 0.0

    def bound(interval: float) -> float:
        losses = [_loss_of_step(*key, interval).self_compose(n) for key, n in steps]
        together = functools.reduce(lambda one, other: one.compose(other), losses)
        return float(together.get_epsilon_for_delta(delta))

    coarse = bound(COARSE)
    return coarse if coarse >= FINE_BELOW else bound(FINE)


@functools.lru_cache(maxsize=16)
def _loss_of_step(noise_multiplier: float, rate: float, interval: float) -> Any:
    """Returns the privacy loss distribution of one step, rows added or removed."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=rate, value_discretization_interval=interval
    )


def _round_up(noise: float) -> float:
    return math.ceil(noise * 10**DIGITS) / 10**DIGITS
