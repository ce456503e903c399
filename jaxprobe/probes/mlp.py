"""One-hidden-layer probes for every layer and weight decay, all trained at once.

As in Gurnee & Tegmark (2024): 256 ReLU units, AdamW, early stopping on a tenth of the training rows. Inputs are
standardised by dimension, without which the few huge ones would be all that the network sees.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxprobe.errors import InputError
from jaxprobe.probes.search import check_targets


class MlpParams(NamedTuple):
    """relu(x @ hidden + hidden_bias) @ out + out_bias, for standardised x and y; leading axes (layer, weight decay)."""

    hidden: Array  # [..., D, H]
    hidden_bias: Array  # [..., H]
    out: Array  # [..., H, C]
    out_bias: Array  # [..., C]


class MlpFit(NamedTuple):
    """MLP probes of L layers at their best weight decay and epoch, as NumPy arrays.

    Attributes:
      params: MlpParams with leading axis L.
      x_mean, x_scale: [L, D] of the training rows; y_mean, y_scale: [C].
      weight_decay: [L] the chosen one.
      validation_mse: [L, W] at the best epoch, mean over targets of MSE / variance.
      best_epoch: [L, W] counted from 1.
    """

    params: MlpParams
    x_mean: np.ndarray
    x_scale: np.ndarray
    y_mean: np.ndarray
    y_scale: np.ndarray
    weight_decay: np.ndarray
    validation_mse: np.ndarray
    best_epoch: np.ndarray


class _Training(NamedTuple):
    """What an epoch changes; every leaf has leading axes (layer, weight decay)."""

    params: MlpParams
    optimiser: optax.OptState
    best: MlpParams
    best_mse: Array
    best_epoch: Array


def fit_mlp(
    x: np.ndarray | Array,
    y: np.ndarray,
    *,
    hidden: int = 256,
    weight_decays: Sequence[float] = (0.01, 0.03, 0.1, 0.3),
    learning_rate: float = 1e-3,
    batch_size: int = 256,
    max_epochs: int = 100,
    patience: int = 5,
    validation_share: float = 0.1,
    seed: int = 0,
) -> MlpFit:
    """Trains every layer and weight decay on the same batches, each stopped by its own validation error.

    Args:
      x: [L, N, D] hidden states, all held in memory; y: [N, C] targets in their own units.
      hidden: units; learning_rate, weight_decays: of AdamW, the decay chosen for each layer by validation error.
      patience: epochs, 1 or more, without a better validation error after which a probe is done.
      validation_share: part of the rows kept for that, at least one row.
      seed: of the split, the batches and the initial weights.

    Raises:
      InputError: shapes that do not fit, fewer than 2 rows, values that are not finite, options out of range, or a
        probe whose error was never finite (a learning rate that overflows).
    """
    y = np.asarray(y, np.float64)
    problems = check_targets(y)
    if np.ndim(x) != 3 or not len(x) or x.shape[1] != len(y):
        problems.append(f"x has shape {np.shape(x)}; wanted [layer, row, dimension] with {len(y)} rows as y.")
    numbers = dict(hidden=hidden, batch_size=batch_size, max_epochs=max_epochs, patience=patience)
    problems += [f"{name} is {number}; wanted 1 or more." for name, number in numbers.items() if not number >= 1]
    if not 0 < validation_share < 1:
        problems.append(f"validation_share is {validation_share}; wanted a share between 0 and 1.")
    if not (np.isfinite(learning_rate) and learning_rate > 0):
        problems.append(f"learning_rate is {learning_rate}; wanted a finite number above 0.")
    decays = np.asarray(weight_decays, np.float32)
    if decays.ndim != 1 or not len(decays) or not (np.isfinite(decays) & (decays >= 0)).all():
        problems.append(f"weight_decays are {weight_decays}; wanted a list of finite numbers, 0 or more.")
    if problems:
        raise InputError(*problems)
    rng = np.random.default_rng(seed)
    held = min(max(1, round(validation_share * len(y))), len(y) - 1)
    validation, training = np.split(rng.permutation(len(y)), [held])
    x_mean, x_scale = _mean_and_scale(x, training)
    y_mean, y_scale = y[training].mean(0), np.where(np.ptp(y[training], axis=0) > 0, y[training].std(0), 1.0)
    standard_x, standard_y = _standardise(x, x_mean, x_scale), ((y - y_mean) / y_scale).astype(np.float32)
    step = partial(_epoch, learning_rate=learning_rate)
    state = _start(jax.random.key(seed), len(x), len(decays), x.shape[2], hidden, y.shape[1], learning_rate)
    batch_size = min(batch_size, len(training))
    for epoch in range(1, max_epochs + 1):
        batches = rng.permutation(training)[: len(training) // batch_size * batch_size].reshape(-1, batch_size)
        state = step(state, standard_x, standard_y, batches, validation, decays, epoch, patience)
        if (epoch - np.asarray(state.best_epoch) >= patience).all():
            break
    mse = np.asarray(state.best_mse)
    untrained = np.flatnonzero(~np.isfinite(mse).any(axis=1))
    if len(untrained):
        raise InputError(
            f"The probes of layers {', '.join(map(str, untrained))} had no finite validation error in any epoch. "
            f"Take a smaller learning rate than {learning_rate:g}, or look for huge values in the rows."
        )
    chosen = mse.argmin(axis=1)
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[np.arange(len(x)), chosen], state.best)
    chosen_decay = np.asarray(weight_decays, np.float64)[chosen]
    return MlpFit(params, x_mean, x_scale, y_mean, y_scale, chosen_decay, mse, np.asarray(state.best_epoch))


def predict_mlp(fit: MlpFit, x: np.ndarray | Array) -> Float[np.ndarray, "L N C"]:
    """Predictions [L, N, C] in target units for hidden states x [L, N, D], in float64 where x is, else in float32."""
    if np.ndim(x) != 3 or (x.shape[0], x.shape[2]) != fit.x_mean.shape:
        wanted = f"[{len(fit.x_mean)}, rows, {fit.x_mean.shape[1]}]"
        raise InputError(f"x has shape {np.shape(x)}; wanted {wanted}. Pass the fitted states, in their order.")
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    params, mean, scale = jax.tree.map(lambda leaf: leaf.astype(dtype), (fit.params, fit.x_mean, fit.x_scale))
    with jax.enable_x64(True):
        standard = np.asarray(_forward_all(params, _standardise(x, mean, scale)))
    return standard * fit.y_scale + fit.y_mean


def _mean_and_scale(x, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[L, D] mean and deviation of the rows, layer by layer in float64; a constant dimension keeps its scale."""
    mean, scale = np.empty((2, x.shape[0], x.shape[2]))
    for layer in range(len(x)):
        states = np.asarray(x[layer]).astype(np.float64)
        if not np.isfinite(states).all():
            raise InputError(
                f"Layer {layer} of x holds values that are not finite. Read it again, in float32 if it was narrower."
            )
        states = states[rows]
        # Not std > 0: rounding leaves a constant some 1e-17.
        mean[layer], scale[layer] = states.mean(0), np.where(np.ptp(states, axis=0) > 0, states.std(0), 1.0)
    return mean.astype(np.float32), scale.astype(np.float32)


@jax.jit
def _standardise(x, mean: Float[Array, "L D"], scale: Float[Array, "L D"]) -> Float[Array, "L N D"]:
    return (x.astype(mean.dtype) - mean[:, None]) / scale[:, None]


def _forward(params: MlpParams, x: Float[Array, "N D"]) -> Float[Array, "N C"]:
    return jax.nn.relu(x @ params.hidden + params.hidden_bias[None]) @ params.out + params.out_bias[None]


_forward_all = jax.jit(jax.vmap(_forward))


def _mse(params: MlpParams, x: Float[Array, "N D"], y: Float[Array, "N C"]) -> Float[Array, ""]:
    return jnp.mean((_forward(params, x) - y) ** 2)


@partial(jax.jit, static_argnums=range(1, 7))
def _start(key, layers: int, decays: int, d: int, hidden: int, c: int, learning_rate: float) -> _Training:
    """The same initial weights for every weight decay of a layer, so that decays compare."""

    def one(key):
        first, second = jax.random.split(key)
        he, lecun = jax.nn.initializers.he_normal(), jax.nn.initializers.lecun_normal()
        return MlpParams(he(first, (d, hidden)), jnp.zeros(hidden), lecun(second, (hidden, c)), jnp.zeros(c))

    by_layer = jax.vmap(one)(jax.random.split(key, layers))
    params = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], decays, axis=1), by_layer)
    optimiser = jax.vmap(jax.vmap(optax.adamw(learning_rate).init))(params)
    mse, epoch = jnp.full((layers, decays), jnp.inf), jnp.zeros((layers, decays), jnp.int32)
    return _Training(params, optimiser, params, mse, epoch)


@partial(jax.jit, static_argnames="learning_rate", donate_argnums=0)
def _epoch(state: _Training, x, y, batches, validation, decays, epoch, patience, *, learning_rate) -> _Training:
    """One pass over the batches [steps, rows], then the validation error; a probe out of patience keeps its best."""

    def step(carry, rows):
        xb, yb = x[:, rows], y[rows]

        def one(params, optimiser, decay, xb):
            gradient = jax.grad(_mse)(params, xb, yb)
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to its integer step count
                updates, optimiser = optax.adamw(learning_rate, weight_decay=decay).update(gradient, optimiser, params)
            return optax.apply_updates(params, updates), optimiser

        return jax.vmap(jax.vmap(one, (0, 0, 0, None)), (0, 0, None, 0))(*carry, decays, xb), None

    (params, optimiser), _ = jax.lax.scan(step, (state.params, state.optimiser), batches)
    score = jax.vmap(jax.vmap(_mse, (0, None, None)), (0, 0, None))
    mse = score(params, x[:, validation], y[validation])
    better = (mse < state.best_mse) & (epoch - state.best_epoch <= patience)
    keep = lambda new, old: jnp.where(better.reshape(better.shape + (1,) * (new.ndim - 2)), new, old)
    best, best_mse = jax.tree.map(keep, params, state.best), keep(mse, state.best_mse)
    return _Training(params, optimiser, best, best_mse, keep(jnp.full_like(state.best_epoch, epoch), state.best_epoch))
