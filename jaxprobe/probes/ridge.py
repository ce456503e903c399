"""Ridge probes for every layer, in closed form, with the penalty chosen by exact leave-one-out.

For one layer, x [N, D] and y [N, C] with their means taken out:

    x'x = Q diag(e) Q'                 once
    w   = Q diag(1 / (e + alpha)) Q'x'y
    leave-one-out residual_i = (y_i - x_i w) / (1 - h_i),   h_i = 1/N + sum_d (x_i Q)_d^2 / (e_d + alpha)

so that every penalty after the first costs next to nothing (factors.py). Products are in float32 at the highest matmul
precision, the eigendecomposition in float64: a float32 one puts errors of 1e-3 to 1e-2 into the leave-one-out errors of
states with a few huge dimensions. With N < 2 D, or a small x, everything is in float64.
Source: Hastie, Tibshirani & Friedman (2009), section 7.10; equals scikit-learn's RidgeCV.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from threadpoolctl import threadpool_limits

from jaxprobe.errors import InputError
from jaxprobe.probes import cholesky, factors
from jaxprobe.probes.groups import Groups, group_predictions, sort_groups
from jaxprobe.probes.spread import batches, layer_mesh, over_layers

# In units of the layer's scale, by half-decades. A grid as wide is looked at beyond an edge where the best one lies.
RELATIVE_ALPHAS = 10.0 ** np.linspace(-4, 1.5, 12)
# Rounding leaves a relative error of about epsilon times the condition; past this it can reach a probe's third digit.
CONDITION_LIMIT = {"float32": 1e4, "float64": 1e12}
CRITERIA = ("leave_one_out", "leave_one_group_out", "generalised")


class RidgeFit(NamedTuple):
    """Ridge probes of L layers at their chosen penalty, as NumPy arrays.

    Attributes:
      weights: [L, D, C] target units per unit of activation.
      intercept: [L, C] target units; prediction = x @ weights + intercept.
      x_mean: [L, D] mean activation of the training rows.
      alpha: [L] the chosen penalty, in squared activation; [L, C] when chosen for each target.
      alphas: [L, A] the penalties tried, ascending where the grid is ours.
      loo_mse: [L, A, C] leave-one-out mean squared error (or the criterion asked for in its place), squared target
        units; NaN where a self-extending grid had no call to look.
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


class Choice(NamedTuple):
    """How a penalty is found: see fit_ridge's arguments of the same names."""

    alphas: np.ndarray | None
    alpha_per_target: bool
    criterion: str
    groups: Groups | None
    dtype: str
    engine: ModuleType  # factors or cholesky


def fit_ridge(
    x: np.ndarray | Array,
    y: np.ndarray | Array,
    alphas: np.ndarray | Sequence[float] | None = None,
    *,
    alpha_per_target: bool = False,
    criterion: str = "leave_one_out",
    groups: np.ndarray | Sequence | None = None,
    dtype: str = "float32",
    solver: str | None = None,
    devices: Sequence[jax.Device] | None = None,
    names: Sequence[str] | None = None,
) -> RidgeFit:
    """Ridge probes for every layer, minimising ||y - b - x w||^2 + alpha ||w||^2 with b unpenalised.

    Args:
      x: [L, N, D] hidden states, one row an entity; any float dtype.
      y: [N, C] targets in their own units.
      alphas: penalties > 0 in squared activation, used as they are; None takes a grid relative to each layer's own
        scale, which extends itself when the best is at its edge.
      alpha_per_target: choose a penalty for each target by its own error; otherwise one a layer, the least mean over
        targets of MSE / var(target).
      criterion: "leave_one_out" (exact); "leave_one_group_out" (exact; with folds for groups, k-fold); "generalised"
        (generalised cross-validation: half the work of leave-one-out).
      groups: [N] labels, for leave_one_group_out.
      dtype: "float32" (products in float32, eigendecomposition in float64) or "float64" (everything).
      solver: "eigh", or "cholesky" (one a penalty, in the dtype); None takes Cholesky on TPU, where float64 is emulated
        and eigendecompositions are slow. leave_one_group_out always takes eigh.
      devices: the layers are spread over these; all local accelerators or one CPU by default.
      names: L names of the layers for messages; their numbers by default.
    Returns:
      RidgeFit of L layers.
    Raises:
      InputError: shapes that do not fit, fewer than 2 rows, a penalty that is not positive, values that are not finite.
    Warns:
      UserWarning: names the layer where rounding may reach the third digit (``CONDITION_LIMIT``).
    """
    if np.ndim(x) != 3 or not len(x):
        raise InputError(f"x has shape {np.shape(x)}; wanted [layer, row, dimension]. For one layer pass x[None].")
    names = [str(i) for i in range(len(x))] if names is None else list(names)
    index = {name: i for i, name in enumerate(names)}
    options = alphas, alpha_per_target, criterion, groups, dtype, solver, devices
    return _fit(names, lambda name: x[index[name]], y, *options)


def fit_states(
    activations: Mapping[str, np.ndarray],
    rows: np.ndarray,
    y: np.ndarray,
    alphas: np.ndarray | Sequence[float] | None = None,
    *,
    alpha_per_target: bool = False,
    criterion: str = "leave_one_out",
    groups: np.ndarray | Sequence | None = None,
    dtype: str = "float32",
    solver: str | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> RidgeFit:
    """``fit_ridge`` on a store's states, in the mapping's order: while one is solved the next one is read.

    Args:
      activations: state name -> [all rows, D].
      rows: the training rows, integer numbers or a boolean mask.
      y: [number of training rows, C]; ``groups`` too is of the training rows.
    Other arguments, result and errors are those of ``fit_ridge``; L counts the states.
    """
    rows = np.asarray(rows)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    options = alphas, alpha_per_target, criterion, groups, dtype, solver, devices
    return _fit(list(activations), lambda name: activations[name][rows], y, *options)


def predict(fit: RidgeFit, x: np.ndarray | Array) -> Float[np.ndarray, "L N C"]:
    """Predictions [L, N, C] in target units for hidden states x [L, N, D]."""
    if len(x) != len(fit.weights):
        raise InputError(f"x has {len(x)} layers, the fit {len(fit.weights)}. Pass the fitted states, in their order.")
    return np.stack([predict_layer(fit, layer, x[layer]) for layer in range(len(x))])


def predict_layer(fit: RidgeFit, layer: int, x: np.ndarray | Array) -> Float[np.ndarray, "N C"]:
    """Predictions [N, C] in target units of the layer-th probe for hidden states x [N, D]."""
    weights, mean = fit.weights[layer], fit.x_mean[layer]
    if x.shape[-1] != len(weights):
        raise InputError(f"x has {x.shape[-1]} dimensions, the probe {len(weights)}. Pass states of the same model.")
    # The mean goes first: in a dimension of mean 1e4 and deviation 1, x @ w + b would lose four digits.
    at_mean = fit.intercept[layer] + mean.astype(np.float64) @ weights.astype(np.float64)
    with jax.enable_x64(True):
        return np.asarray(_centred_product(x, mean, weights)) + at_mean.astype(weights.dtype)


@jax.jit
def _centred_product(x, mean, weights):
    return factors.product(x.astype(weights.dtype) - mean[None], weights)


def _fit(names, read, y, alphas, alpha_per_target, criterion, groups, dtype, solver, devices) -> RidgeFit:
    """Batches of states, in bounded memory; see fit_ridge."""
    mesh = layer_mesh(devices)
    y, y_mean, y_scale, choice = _checked(y, alphas, alpha_per_target, criterion, groups, dtype, solver, mesh)

    def checked_read(name):
        state = read(name)
        if state.ndim != 2 or len(state) != len(y):
            raise InputError(f"State '{name}' has shape {state.shape}; wanted {len(y)} rows, one for each row of y.")
        return state

    fits = []
    # After eigh the threads of OpenBLAS spin and halve the speed of XLA's next products.
    with jax.enable_x64(True), threadpool_limits(1, user_api="blas"):
        for batch, x in batches(names, checked_read, mesh):
            fit = RidgeFit(*(leaf[: len(batch)] for leaf in _fit_batch(x, y, choice, mesh)))
            _check_condition(batch, fit, factors.product_dtype(*x.shape[1:], dtype))
            fits.append(fit)
    fit = RidgeFit(*(np.concatenate(leaves) for leaves in zip(*fits, strict=True)))
    tried = ~np.isnan(fit.loo_mse).all(axis=(0, 2))
    weights, x_mean = (fit.weights * y_scale).astype(dtype), fit.x_mean.astype(dtype)
    intercept = y_mean - np.einsum("ld,ldc->lc", x_mean, weights, dtype=np.float64)
    loo_mse = fit.loo_mse[:, tried] * y_scale**2
    return RidgeFit(weights, intercept, x_mean, fit.alpha, fit.alphas[:, tried], loo_mse, fit.condition)


def _checked(y, alphas, alpha_per_target, criterion, groups, dtype, solver, mesh):
    """(y standardised, its mean, its deviation, Choice), all float64, or every problem found."""
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
    if dtype not in CONDITION_LIMIT:
        problems.append(f"dtype is {dtype!r}; wanted one of {', '.join(CONDITION_LIMIT)}.")
    if criterion not in CRITERIA:
        problems.append(f"criterion is {criterion!r}; wanted one of {', '.join(CRITERIA)}.")
    if (groups is None) == (criterion == "leave_one_group_out"):
        problems.append("groups go with criterion='leave_one_group_out', and it with groups. Pass both or neither.")
    elif groups is not None and len(groups) != len(y):
        problems.append(f"groups has {len(groups)} labels for {len(y)} rows. Pass one a row.")
    if solver not in (None, "eigh", "cholesky"):
        problems.append(f"solver is {solver!r}; wanted eigh or cholesky.")
    if problems:
        raise InputError(*problems)
    mean, scale = y.mean(0), y.std(0)
    scale[np.ptp(y, axis=0) == 0] = 1.0  # a constant target has weights of 0 and no variance to divide by
    groups = None if groups is None else sort_groups(groups)
    if solver is None:
        solver = "cholesky" if mesh.devices.flat[0].platform == "tpu" else "eigh"
    engine = cholesky if solver == "cholesky" and groups is None else factors
    return (y - mean) / scale, mean, scale, Choice(alphas, alpha_per_target, criterion, groups, dtype, engine)


def _fit_batch(x, y, choice: Choice, mesh) -> RidgeFit:
    """Probes of x [B, N, D] for standardised y, as NumPy arrays; intercepts are left out."""
    engine = choice.engine
    f = over_layers(engine.factor, mesh, (0, None), dtype=choice.dtype)(x, y)
    errors = partial(_errors, f, x, y, choice, mesh)
    if choice.alphas is None:
        alphas, losses = _self_extending(
            errors, RELATIVE_ALPHAS * np.asarray(f.scale)[:, None], choice.alpha_per_target
        )
    else:
        alphas = np.broadcast_to(choice.alphas, (len(x), len(choice.alphas)))
        losses = errors(alphas)
    alpha = np.take_along_axis(alphas, _best(losses, choice.alpha_per_target), axis=1)
    weights = over_layers(engine.weights_at, mesh, (0, 0, 0))(f, x, alpha)
    condition = over_layers(engine.condition_at, mesh, (0, 0))(f, alpha.min(axis=1))
    alpha = alpha if choice.alpha_per_target else alpha[:, 0]
    leaves = weights, f.x_mean, alpha, alphas, losses, condition
    weights, x_mean, *rest = map(np.asarray, leaves)
    return RidgeFit(weights, np.zeros_like(weights[:, 0]), x_mean, *rest)


def _errors(f, x, y, choice: Choice, mesh, alphas: np.ndarray) -> np.ndarray:
    """[B, A, C] standardised mean squared error by the chosen criterion, for penalties [B, A]."""
    engine = choice.engine
    if choice.criterion == "leave_one_out":
        compiled = over_layers(engine.leave_one_out, mesh, (0, 0, None, 0), dtype=choice.dtype)
        return np.asarray(compiled(f, x, y, alphas))
    if choice.criterion == "generalised":
        static = dict(n=len(y), sample_space=factors.in_sample_space(*x.shape[1:]))
        compiled = over_layers(engine.generalised, mesh, (0, None, 0), **static)
        return np.asarray(compiled(f, np.sum(y**2, axis=0), alphas))
    layers = (jax.tree.map(lambda leaf, i=i: leaf[i], f) for i in range(len(x)))
    predictions = (group_predictions(*args, y, choice.groups, a) for *args, a in zip(layers, x, alphas, strict=True))
    return np.stack([np.mean((p - y) ** 2, axis=1) for p in predictions])


def _best(losses: np.ndarray, alpha_per_target: bool) -> np.ndarray:
    """[B, C] index of the penalty with the least error, the same for every target unless each chooses for itself."""
    if not alpha_per_target:
        losses = np.broadcast_to(losses.mean(axis=2, keepdims=True), losses.shape)
    return np.argmin(np.where(np.isnan(losses), np.inf, losses), axis=1)


def _self_extending(errors: Callable, alphas: np.ndarray, alpha_per_target: bool) -> tuple[np.ndarray, np.ndarray]:
    """The grid [B, A] with as wide a one at each side, NaN unless the layer's best was at that edge."""
    losses = errors(alphas)
    best = _best(losses, alpha_per_target)
    width = alphas[0, 1] * alphas[0, -1] / alphas[0, 0] ** 2
    sides = []
    for grid, edge in ((alphas / width, 0), (alphas * width, alphas.shape[1] - 1)):
        wanted = (best == edge).any(axis=1)
        side = errors(grid) if wanted.any() else np.full_like(losses, np.nan)
        sides.append(np.where(wanted[:, None, None], side, np.nan))
    return np.concatenate([alphas / width, alphas, alphas * width], 1), np.concatenate([sides[0], losses, sides[1]], 1)


def _check_condition(names: Sequence[str], fit: RidgeFit, dtype: str) -> None:
    bad = [name for name, condition in zip(names, fit.condition, strict=True) if np.isnan(condition)]
    if bad:
        raise InputError(
            f"State {', '.join(bad)} holds values that are not finite. Read it again, in float32 if it was narrower."
        )
    remedy = "Take larger alphas" + (", or dtype='float64'." if dtype == "float32" else ".")
    for name, condition, alpha in zip(names, fit.condition, fit.alpha, strict=True):
        if condition > CONDITION_LIMIT[dtype]:
            warnings.warn(
                f"State '{name}' has condition {condition:.1e} at its penalty {np.min(alpha):.3g}, above "
                f"{CONDITION_LIMIT[dtype]:.0e}: rounding in {dtype} may reach the third digit. {remedy}",
                stacklevel=4,
            )
