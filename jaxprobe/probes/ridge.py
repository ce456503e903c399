"""Ridge probes for every layer, in closed form, with the penalty chosen by exact leave-one-out.

For one layer, x [N, D] and y [N, C] with their means taken out:

    x'x = Q diag(e) Q'                 once
    w   = Q diag(1 / (e + alpha)) Q'x'y
    leave-one-out residual_i = (y_i - x_i w) / (1 - h_i),   h_i = 1/N + sum_d (x_i Q)_d^2 / (e_d + alpha)

so that every penalty after the first costs next to nothing (factors.py). Products are in float32 at the highest matmul
precision, the eigendecomposition in float64: a float32 one puts errors of 1e-3 to 1e-2 into the leave-one-out errors of
states with a few huge dimensions. With N < 2 D everything is in float64.
Source: Hastie, Tibshirani & Friedman (2009), section 7.10; equals scikit-learn's RidgeCV.
"""

import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from threadpoolctl import threadpool_limits

from jaxprobe.errors import InputError
from jaxprobe.probes.factors import condition_at, factor, leave_one_out, product_dtype, weights_at

# In units of the layer's scale, by half-decades. A block as wide is looked at beyond an edge where the best one lies.
RELATIVE_ALPHAS = 10.0 ** np.linspace(-4, 1.5, 12)
# Rounding leaves a relative error of about epsilon times the condition; past this it can reach a probe's third digit.
CONDITION_LIMIT = {"float32": 1e4, "float64": 1e12}


class RidgeFit(NamedTuple):
    """Ridge probes of L layers at their chosen penalty, as NumPy arrays.

    Attributes:
      weights: [L, D, C] target units per unit of activation.
      intercept: [L, C] target units; prediction = x @ weights + intercept.
      x_mean: [L, D] mean activation of the training rows.
      alpha: [L] the chosen penalty, in squared activation; [L, C] when chosen for each target.
      alphas: [L, A] the penalties tried, ascending where the grid is ours.
      loo_mse: [L, A, C] leave-one-out mean squared error, squared target units; NaN where a self-extending grid had no
        call to look.
      condition: [L] largest variance inflation factor at the chosen penalty, max_d G_dd [(G + alpha I)^-1]_dd, G = x'x
        centred (x x' in sample space): the relative error of the probe is about the rounding error times this.
    """

    weights: np.ndarray
    intercept: np.ndarray
    x_mean: np.ndarray
    alpha: np.ndarray
    alphas: np.ndarray
    loo_mse: np.ndarray
    condition: np.ndarray


def fit_ridge(
    x: np.ndarray | Array,
    y: np.ndarray | Array,
    alphas: np.ndarray | Sequence[float] | None = None,
    *,
    alpha_per_target: bool = False,
    dtype: str = "float32",
    names: Sequence[str] | None = None,
) -> RidgeFit:
    """Ridge probes for every layer, minimising ||y - b - x w||^2 + alpha ||w||^2 with b unpenalised.

    Args:
      x: [L, N, D] hidden states, one row an entity; any float dtype.
      y: [N, C] targets in their own units.
      alphas: penalties > 0 in squared activation, used as they are; None takes a grid relative to each layer's own
        scale, which extends itself when the best is at its edge.
      alpha_per_target: choose a penalty for each target by its own leave-one-out error; otherwise one a layer, the
        least mean over targets of leave-one-out MSE / var(target).
      dtype: "float32" (products in float32, eigendecomposition in float64) or "float64" (everything).
      names: L names of the layers for messages; their numbers by default.
    Returns:
      RidgeFit of L layers.
    Raises:
      InputError: shapes that do not fit, fewer than 2 rows, a penalty that is not positive, values that are not finite.
    """
    if np.ndim(x) != 3:
        raise InputError(
            f"x has {np.ndim(x)} dimensions; wanted 3: [layer, row, dimension]. For one layer pass x[None]."
        )
    names = [str(i) for i in range(len(x))] if names is None else list(names)
    return _fit_each(((name, x[i]) for i, name in enumerate(names)), y, alphas, alpha_per_target, dtype)


def fit_states(
    activations: Mapping[str, np.ndarray],
    rows: np.ndarray,
    y: np.ndarray,
    alphas: np.ndarray | Sequence[float] | None = None,
    *,
    alpha_per_target: bool = False,
    dtype: str = "float32",
) -> RidgeFit:
    """``fit_ridge`` on a store's states, in the mapping's order: one state in memory while the next one is read.

    Args:
      activations: state name -> [all rows, D].
      rows: the training rows, integer numbers or a boolean mask.
      y: [number of training rows, C].
    Other arguments, result and errors are those of ``fit_ridge``; L counts the states.
    """
    rows = np.asarray(rows)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    return _fit_each(_prefetch(activations, rows), y, alphas, alpha_per_target, dtype)


def predict(fit: RidgeFit, x: np.ndarray | Array) -> Float[np.ndarray, "L N C"]:
    """Predictions [L, N, C] in target units for hidden states x [L, N, D]."""
    if len(x) != len(fit.weights):
        raise InputError(
            f"x has {len(x)} layers, the fit {len(fit.weights)}. Pass the states that were fitted, in order."
        )
    return np.stack([predict_layer(fit, layer, x[layer]) for layer in range(len(x))])


def predict_layer(fit: RidgeFit, layer: int, x: np.ndarray | Array) -> Float[np.ndarray, "N C"]:
    """Predictions [N, C] in target units of the layer-th probe for hidden states x [N, D]."""
    weights, mean = fit.weights[layer], fit.x_mean[layer]
    if x.shape[-1] != len(weights):
        raise InputError(f"x has {x.shape[-1]} dimensions, the probe {len(weights)}. Pass states of the same model.")
    # The mean goes first: in a dimension of mean 1e4 and deviation 1, x @ w + b would lose four digits.
    at_mean = fit.intercept[layer] + mean.astype(np.float64) @ weights.astype(np.float64)
    with jax.enable_x64(True):
        return np.asarray(_product(x, mean, weights)) + at_mean.astype(weights.dtype)


@jax.jit
def _product(x, mean, weights):
    return jnp.matmul(x.astype(weights.dtype) - mean[None], weights, precision="highest")


def _prefetch(activations: Mapping[str, np.ndarray], rows: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    """(name, activations[name][rows]) in order, the next one read by a thread while this one is used."""
    box: dict = {}

    def read(name):
        try:
            box["state"] = np.ascontiguousarray(activations[name][rows])
        except BaseException as error:  # raised again in the consumer's thread
            box["error"] = error

    names = list(activations)
    for i in range(len(names) + 1):
        if i > 0:
            reader.join()
            if "error" in box:
                raise box["error"]
            state = box.pop("state")
        if i < len(names):
            reader = threading.Thread(target=read, args=(names[i],), daemon=True)
            reader.start()
        if i > 0:
            yield names[i - 1], state


def _fit_each(states: Iterable, y, alphas, alpha_per_target, dtype) -> RidgeFit:
    """Fits state by state: faster on a CPU than a vmap of the whole, and one state's memory."""
    y, y_mean, y_scale, alphas = _checked(y, alphas, dtype)
    relative = alphas is None
    grid = RELATIVE_ALPHAS if relative else alphas
    fits = []
    for name, x in states:
        if x.ndim != 2 or len(x) != len(y):
            raise InputError(f"State '{name}' has shape {tuple(x.shape)}; wanted {len(y)} rows, one for each row of y.")
        # After eigh the threads of OpenBLAS spin and halve the speed of XLA's next products.
        with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
            fit = _fit_layer(x, y, grid, relative=relative, alpha_per_target=alpha_per_target, dtype=dtype)
            fits.append(_in_target_units(jax.tree.map(np.asarray, fit), y_mean, y_scale, dtype))
        _check_condition(name, fits[-1], product_dtype(*x.shape, dtype))
    if not fits:
        raise InputError("There are no layers to fit. Pass at least one.")
    if len({fit.weights.shape for fit in fits}) > 1:
        raise InputError("The states differ in their number of dimensions. Fit states of one model at a time.")
    fit = RidgeFit(*(np.stack(leaves) for leaves in zip(*fits, strict=True)))
    tried = ~np.isnan(fit.loo_mse).all(axis=(0, 2))
    return fit._replace(alphas=fit.alphas[:, tried], loo_mse=fit.loo_mse[:, tried])


def _checked(y, alphas, dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Targets standardised, their mean and deviation, and the grid; all float64."""
    problems = []
    y = np.asarray(y, np.float64)
    if y.ndim != 2 or len(y) < 2:
        problems.append(f"y has shape {y.shape}; wanted at least 2 rows and one column a target: [rows, targets].")
    elif not np.isfinite(y).all():
        row, column = np.argwhere(~np.isfinite(y))[0]
        problems.append(f"y is not finite in row {row}, column {column}. Leave such rows out.")
    if alphas is not None:
        alphas = np.asarray(alphas, np.float64)
        if alphas.ndim != 1 or not len(alphas) or not (np.isfinite(alphas) & (alphas > 0)).all():
            problems.append(f"alphas are {alphas}; wanted a list of finite numbers above 0.")
    if dtype not in ("float32", "float64"):
        problems.append(f"dtype is {dtype!r}; wanted 'float32' or 'float64'.")
    if problems:
        raise InputError(*problems)
    mean, scale = y.mean(0), y.std(0)
    scale[scale == 0] = 1.0  # a constant target has weights of 0 and no variance to divide by
    return (y - mean) / scale, mean, scale, alphas


@partial(jax.jit, static_argnames=("relative", "alpha_per_target", "dtype"))
def _fit_layer(x, y, alphas, *, relative, alpha_per_target, dtype) -> RidgeFit:
    """One layer; y is standardised, so errors are in units of the target's variance and intercept is 0 at x_mean."""
    factors = factor(x, y, dtype)
    loo = partial(leave_one_out, factors, x, y, dtype=dtype)
    losses = loo(alphas * factors.scale if relative else alphas)
    if relative:
        alphas, losses = _extend(loo, alphas * factors.scale, losses, alpha_per_target)
    best = _best(losses, alpha_per_target)
    alpha = alphas[best]
    weights = weights_at(factors, x, alpha)
    condition = condition_at(factors, jnp.min(alpha))
    alpha = alpha if alpha_per_target else alpha[0]
    return RidgeFit(weights, jnp.zeros(y.shape[1]), factors.x_mean, alpha, alphas, losses, condition)


def _best(losses: Float[Array, "A C"], alpha_per_target: bool):
    """[C] index of the penalty with the least loss, the same for every target unless they choose for themselves."""
    if not alpha_per_target:
        losses = jnp.broadcast_to(jnp.mean(losses, axis=1, keepdims=True), losses.shape)
    return jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses), axis=0)


def _extend(loo, alphas: Float[Array, "A"], losses: Float[Array, "A C"], alpha_per_target: bool):
    """The grid with a further block at each side, looked at only where the best was at that edge; NaN elsewhere."""
    width = alphas[-1] / alphas[0] * (alphas[1] / alphas[0])
    best = _best(losses, alpha_per_target)
    unseen = lambda _: jnp.full_like(losses, jnp.nan)
    below = lax.cond(jnp.any(best == 0), loo, unseen, alphas / width)
    above = lax.cond(jnp.any(best == len(alphas) - 1), loo, unseen, alphas * width)
    return jnp.concatenate([alphas / width, alphas, alphas * width]), jnp.concatenate([below, losses, above])


def _in_target_units(fit: RidgeFit, y_mean, y_scale, dtype) -> RidgeFit:
    weights = (fit.weights * y_scale).astype(dtype)
    x_mean = fit.x_mean.astype(dtype)
    intercept = y_mean - x_mean.astype(np.float64) @ weights.astype(np.float64)
    return fit._replace(weights=weights, intercept=intercept, x_mean=x_mean, loo_mse=fit.loo_mse * y_scale**2)


def _check_condition(name: str, fit: RidgeFit, dtype: str) -> None:
    if np.isnan(fit.condition):
        raise InputError(
            f"State '{name}' holds values that are not finite. Read it again, in float32 if it was narrower."
        )
    if fit.condition > CONDITION_LIMIT[dtype]:
        remedy = "Take larger alphas" + (", or dtype='float64'." if dtype == "float32" else ".")
        warnings.warn(
            f"State '{name}' has condition {fit.condition:.1e} at its penalty {np.min(fit.alpha):.3g}, above "
            f"{CONDITION_LIMIT[dtype]:.0e}: rounding in {dtype} may reach the third digit. {remedy}",
            stacklevel=4,
        )
