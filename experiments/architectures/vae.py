"""VAE: a variational autoencoder, for any data; learns what rows look like, without labels.

Kingma & Welling 2013, "Auto-Encoding Variational Bayes": a Gaussian encoder q(z|x), the
reparameterised sample z = mean + exp(log_var / 2) * noise (section 2.4), and a decoder p(x|z).

The likelihood and its scale follow from the kind of data and are never searched, so that the ELBOs
of two trials compare: images in [0, 1] are Bernoulli (appendix C.1), standardised tables and
sequences are Gaussian with variance 1 (appendix C.2, with the variance fixed).
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from experiments.architectures import Architecture, Params
from experiments.architectures.preprocessing import scaled_input
from mlops.inputs import InputSpec

EVALUATION_SEED = 20131220
"""Evaluation draws the same noise each time, so that two trials are judged by the same draw."""
DENSE_BELOW = 16
"""Images whose shorter side has fewer pixels are encoded by Dense layers alone."""


class VAE(Architecture):
    """Dense encoder and decoder; before them, strided convolutions for images from 16 pixels up.

    The score is the ELBO at beta = 1, in nats a row, whatever `beta` trained it (Higgins et al.
    2017, "beta-VAE", section 2).
    """

    name = "vae"
    kinds = ("table", "sequence", "image")
    task = "vae"
    objective = "val_elbo"
    variable_params = ("beta", "learning_rate")

    def space(self, data: InputSpec) -> dict[str, BaseDistribution]:
        return {
            "latent_dim": IntDistribution(2, 32, log=True),
            "n_layers": IntDistribution(1, 2),
            "units": IntDistribution(64, 512, log=True),
            "beta": FloatDistribution(0.25, 4.0, log=True),
            "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
            "batch_size": CategoricalDistribution([32, 64, 128]),
        }

    def baseline(self, data: InputSpec) -> Params:
        return {
            "latent_dim": 8,
            "n_layers": 1,
            "units": 256,
            "beta": 1.0,
            "learning_rate": 1e-3,
            "batch_size": 32,
        }

    def build(self, params: Params, data: InputSpec, n_classes: int) -> keras.Model:
        inputs, scaled = scaled_input(data)
        x, grid = _convolve(scaled, data)
        x = keras.layers.Flatten()(x)
        for _ in range(params["n_layers"]):
            x = keras.layers.Dense(params["units"], activation="relu")(x)
        z_mean = keras.layers.Dense(params["latent_dim"], name="z_mean")(x)
        z_log_var = keras.layers.Dense(params["latent_dim"], name="z_log_var")(x)
        encoder = keras.Model(inputs, [scaled, z_mean, z_log_var], name="encoder")

        latent = keras.Input((params["latent_dim"],), name="z")
        x = latent
        for _ in range(params["n_layers"]):
            x = keras.layers.Dense(params["units"], activation="relu")(x)
        decoder = keras.Model(latent, _deconvolve(x, grid, data), name="decoder")

        model = VariationalAutoencoder(encoder, decoder, self.likelihood(data), params["beta"])
        model.compile(optimizer=keras.optimizers.Adam(params["learning_rate"]))
        return model

    def to_package(self, model: keras.Model) -> keras.Model:
        """Returns raw rows -> (scaled rows, reconstruction at the mean, z_mean, z_log_var)."""
        scaled, z_mean, z_log_var = model.encoder.outputs
        return keras.Model(model.encoder.input, [scaled, model.decoder(z_mean), z_mean, z_log_var])

    def likelihood(self, data: InputSpec) -> str:
        return "bernoulli" if data.kind == "image" else "gaussian"


class VariationalAutoencoder(keras.Model):
    """Trains an encoder and a decoder on the negative ELBO, reconstruction + beta * KL.

    Its metrics are `elbo` (at beta = 1), `reconstruction` (log p(x|z)) and `kl`, in nats a row.
    """

    def __init__(
        self, encoder: keras.Model, decoder: keras.Model, likelihood: str, beta: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        # A variable: in a population each member has its own.
        self.beta = keras.Variable(beta, dtype="float32", trainable=False, name="beta")
        self._log_likelihood = _bernoulli if likelihood == "bernoulli" else _gaussian
        self._noise = keras.random.SeedGenerator()  # seeded from keras.utils.set_random_seed
        self._elbo = keras.metrics.Mean(name="elbo")
        self._reconstruction = keras.metrics.Mean(name="reconstruction")
        self._kl = keras.metrics.Mean(name="kl")

    def call(self, rows: Any, training: bool = False) -> tuple[Any, Any, Any, Any]:
        scaled, z_mean, z_log_var = self.encoder(rows, training=training)
        noise = keras.random.normal(
            ops.shape(z_mean), seed=self._noise if training else EVALUATION_SEED
        )
        z = z_mean + ops.exp(0.5 * z_log_var) * noise
        return scaled, self.decoder(z, training=training), z_mean, z_log_var

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        scaled, output, z_mean, z_log_var = y_pred
        reconstruction = self._log_likelihood(scaled, output)
        # Appendix B: the KL divergence of q(z|x) from the standard normal prior.
        kl = -0.5 * ops.sum(1.0 + z_log_var - ops.square(z_mean) - ops.exp(z_log_var), axis=1)
        self._elbo.update_state(reconstruction - kl)
        self._reconstruction.update_state(reconstruction)
        self._kl.update_state(kl)
        return ops.mean(self.beta * kl - reconstruction)


def _bernoulli(x: Any, logits: Any) -> Any:
    """Returns log p(x|z), nats a row; x in [0, 1]. The stable form of sigmoid cross-entropy."""
    nats = ops.maximum(logits, 0.0) - logits * x + ops.log1p(ops.exp(-ops.abs(logits)))
    return -ops.sum(ops.reshape(nats, (ops.shape(x)[0], -1)), axis=1)


def _gaussian(x: Any, mean: Any) -> Any:
    """Returns log p(x|z), nats a row, for variance 1."""
    nats = 0.5 * (ops.square(x - mean) + math.log(2.0 * math.pi))
    return -ops.sum(ops.reshape(nats, (ops.shape(x)[0], -1)), axis=1)


def _convolve(x: Any, data: InputSpec) -> tuple[Any, tuple[int, int, int] | None]:
    """Halves an image until its shorter side is below 16; returns it and its grid (h, w, c)."""
    if data.kind != "image" or min(data.shape[:2]) < DENSE_BELOW:
        return x, None
    filters = 16
    while min(x.shape[1:3]) >= DENSE_BELOW:
        filters = min(2 * filters, 64)
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    return x, tuple(x.shape[1:])


def _deconvolve(x: Any, grid: tuple[int, int, int] | None, data: InputSpec) -> Any:
    """From the last Dense layer back to a row's shape, mirroring `_convolve`."""
    if grid is None:
        x = keras.layers.Dense(math.prod(data.shape))(x)
        return keras.layers.Reshape(data.shape)(x)
    height, width, channels = data.shape
    x = keras.layers.Dense(math.prod(grid), activation="relu")(x)
    x = keras.layers.Reshape(grid)(x)
    while x.shape[1] < height or x.shape[2] < width:
        x = keras.layers.Conv2DTranspose(32, 3, strides=2, padding="same", activation="relu")(x)
    # Halving rounds up, so doubling may end a few pixels too large.
    x = keras.layers.Cropping2D(((0, x.shape[1] - height), (0, x.shape[2] - width)))(x)
    return keras.layers.Conv2D(channels, 3, padding="same")(x)
