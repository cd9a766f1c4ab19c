"""The architectures that come with Podium, by name, and what kinds of task networks have."""

from __future__ import annotations

from typing import Literal

Task = Literal["classifier", "vae"]

BUILT_IN = {
    "dnn": "experiments.architectures.dnn:DNN",
    "cnn": "experiments.architectures.cnn:CNN",
    "rnn": "experiments.architectures.rnn:RNN",
    "vae": "experiments.architectures.vae:VAE",
}
"""A user's own is `module:Class`."""


def architecture_path(name: str) -> str:
    """Returns `module:Class` of an architecture's name."""
    return BUILT_IN.get(name, name)
