"""What a VAE's outputs are worth, in nats: how well it rebuilds a row, and how far its code strays.

`mlops/evaluation.py` uses `reconstruction_error` too, so that a candidate is judged by the very
numbers that it serves.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def reconstruction_error(
    x: npt.ArrayLike, output: npt.ArrayLike, likelihood: str
) -> npt.NDArray[np.float64]:
    """Returns `-log p(x|z)` of each row, shape (n,), in nats summed over the row's elements.

    `bernoulli`: the cross-entropy of x in [0, 1] with logits l, `max(l,0) - l*x + log(1+e^-|l|)`,
    a form that overflows nowhere (Kingma & Welling 2013, appendix C.1). `gaussian`: unit variance
    around the mean m, `(x-m)^2/2 + log(2 pi)/2` (appendix C.2).

    Args:
        x: The preprocessed input, shape (n, ...).
        output: The decoder's output, same shape: logits, or means.
        likelihood: "bernoulli" or "gaussian".

    Raises:
        ValueError: The shapes differ, or the likelihood is another word.

    Example:
        >>> reconstruction_error([[0.5]], [[0.0]], "bernoulli").round(4)
        array([0.6931])
    """
    target = np.asarray(x, dtype=np.float64)
    out = np.asarray(output, dtype=np.float64)
    if target.shape != out.shape:
        raise ValueError(f"shapes differ; expected {target.shape}, got {out.shape}.")
    if likelihood == "bernoulli":
        nats = np.maximum(out, 0.0) - out * target + np.log1p(np.exp(-np.abs(out)))
    elif likelihood == "gaussian":
        nats = 0.5 * np.square(target - out) + 0.5 * math.log(2.0 * math.pi)
    else:
        raise ValueError(f"no such likelihood; expected bernoulli or gaussian, got {likelihood!r}.")
    return np.asarray(nats.reshape(len(nats), math.prod(nats.shape[1:])).sum(axis=1))


def gaussian_kl(z_mean: npt.ArrayLike, z_log_var: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns `KL(N(z_mean, e^z_log_var) || N(0, I))` of each row, shape (n,), in nats.

    `-1/2 sum(1 + log var - mean^2 - var)` (Kingma & Welling 2013, appendix B).

    Args:
        z_mean: Shape (n, k).
        z_log_var: Shape (n, k).

    Example:
        >>> gaussian_kl([[0.0, 1.0]], [[0.0, 0.0]])
        array([0.5])
    """
    mean = np.asarray(z_mean, dtype=np.float64)
    log_var = np.asarray(z_log_var, dtype=np.float64)
    with np.errstate(over="ignore"):
        nats = -0.5 * (1.0 + log_var - np.square(mean) - np.exp(log_var))
    return np.asarray(nats.sum(axis=1))
