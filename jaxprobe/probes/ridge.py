"""Ridge probes for every layer, in closed form, with the penalty chosen by exact leave-one-out.

For one layer, x [N, D] and y [N, C] with their means taken out:

    x'x = Q diag(e) Q'                 once
    w   = Q diag(1 / (e + alpha)) Q'x'y
    leave-one-out residual_i = (y_i - x_i w) / (1 - h_i),   h_i = 1/N + sum_d (x_i Q)_d^2 / (e_d + alpha)

so that every penalty after the first costs next to nothing (eigen.py). Products are in float32 at the highest matmul
precision, the eigendecomposition in float64: a float32 one puts errors of 1e-3 to 1e-2 into the leave-one-out errors of
states with a few huge dimensions. With N < 2 D, or a small x, all is in float64, and where 1 - h or the condition
asks for it. Accelerators take one float32 Cholesky factorisation a penalty instead (cholesky.py).
Source: Hastie, Tibshirani & Friedman (2009), section 7.10; equals scikit-learn's RidgeCV.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxprobe.errors import InputError
from jaxprobe.probes import search, solve
from jaxprobe.probes.devices import batches, gather, solving
from jaxprobe.probes.moments import Moments, product, shifted


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
      notes: sentences that a reader should see: which layers were solved in float64, and why.
    """

    weights: np.ndarray
    intercept: np.ndarray
    x_mean: np.ndarray
    alpha: np.ndarray
    alphas: np.ndarray
    loo_mse: np.ndarray
    condition: np.ndarray
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        layers, width, targets = self.weights.shape
        return f"RidgeFit({layers} layers, width {width}, {targets} targets)"


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
    rows: np.ndarray | None = None,
) -> RidgeFit:
    """Ridge probes for every layer, minimising ||y - b - x w||^2 + alpha ||w||^2 with b unpenalised.

    Args:
      x: [L, N, D] hidden states, one row an entity; any float dtype.
      y: [N, C] targets in their own units.
      alphas: penalties > 0 in squared activation, used as they are; None takes a grid relative to each layer's own
        scale, which extends itself when the best is at its edge.
      alpha_per_target: choose a penalty for each target by its own error; otherwise one a layer, the least mean over
        targets of MSE / var(target).
      criterion: "leave_one_out" (exact); "leave_one_group_out" (exact, for any number of groups); "k_fold" (the same,
        less work for a few large folds); "generalised" (cross-validation, half the work of leave-one-out).
      groups: [N] labels of groups or folds, for leave_one_group_out and k_fold.
      dtype: "float32" (products in float32 where that suffices, the eigendecomposition in float64) or "float64".
      solver: "eigh", or "cholesky": one factorisation a penalty, in float32 throughout, and in float64 on the host
        where its own monitors find that float32 does not suffice (see ``notes``). None takes Cholesky on accelerators
        and eigh on a CPU. TPUs have no float64 linear algebra: what asks for it is solved on the host.
      devices: the layers are spread over these; all local accelerators or one CPU by default.
      names: L names of the layers for messages; their numbers by default.
      rows: [N] bool, the rows to fit on; all by default. Fits of one x that differ in these share a compiled program.

    Returns:
      RidgeFit of L layers.

    Raises:
      InputError: shapes that do not fit, fewer than 2 rows, a penalty that is not positive, values that are not finite.

    Warns:
      UserWarning: names the layer where rounding may reach the third digit even in float64.
    """
    if np.ndim(x) != 3 or not len(x):
        raise InputError(f"x has shape {np.shape(x)}; wanted [layer, row, dimension]. For one layer pass x[None].")
    names = [str(i) for i in range(len(x))] if names is None else list(names)
    if len(set(names)) != len(x):
        raise InputError(f"names are {names}; wanted {len(x)} different ones, one for each layer.")
    index = {name: i for i, name in enumerate(names)}
    if rows is not None:
        rows = np.asarray(rows, bool)
        if rows.shape != (x.shape[1],) or len(y) != len(rows):
            raise InputError(f"rows has shape {rows.shape} for x {x.shape} and {len(y)} rows of y. Mark each row of x.")
        if problems := search.check_groups(groups, len(rows)):  # before they are cut
            raise InputError(*problems)
        if not solve.can_leave_out(rows, x.shape[2], criterion, dtype, solver, devices):
            groups = None if groups is None else np.asarray(groups)[rows]
            x, y, rows = x[:, rows], np.asarray(y)[rows], None
    options = alphas, alpha_per_target, criterion, groups, dtype, solver, devices
    return to_fit(_solve(names, lambda name: x[index[name]], y, *options, rows=rows), names, dtype)


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
    if not activations:
        raise InputError("There are no states to fit. Extract some first.")
    options = dict(alpha_per_target=alpha_per_target, criterion=criterion, groups=groups, dtype=dtype, solver=solver)
    solved = solve_states(activations, rows, y, alphas, **options, devices=devices)
    return to_fit(solved, list(activations), dtype)


def solve_states(
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
) -> dict[str, np.ndarray]:
    """``fit_states`` as arrays of which each has a leading axis of states, for ``to_fit``; none without states.

    Where several processes solve some states each, these are the arrays to put together.
    """
    rows = np.asarray(rows)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    options = alphas, alpha_per_target, criterion, groups, dtype, solver, devices
    return _solve(list(activations), lambda name: gather(name, activations[name], rows), y, *options)


def predict(fit: RidgeFit, x: np.ndarray | Array) -> Float[np.ndarray, "L N C"]:
    """Predictions [L, N, C] in target units for hidden states x [L, N, D]."""
    if len(x) != len(fit.weights):
        raise InputError(f"x has {len(x)} layers, the fit {len(fit.weights)}. Pass the fitted states, in their order.")
    return np.stack([predict_layer(fit, layer, x[layer]) for layer in range(len(x))])


def predict_layer(fit: RidgeFit, layer: int, x: np.ndarray | Array) -> Float[np.ndarray, "N C"]:
    """Predictions [N, C] in target units of the layer-th probe for hidden states x [N, D]."""
    weights, mean = fit.weights[layer], fit.x_mean[layer]
    # Beside wider states the weights of a narrower one end in zeros.
    if x.shape[-1] > len(weights) or weights[x.shape[-1] :].any():
        raise InputError(f"x has {x.shape[-1]} dimensions, the probe {len(weights)}. Pass states of the same model.")
    weights, mean = weights[: x.shape[-1]], mean[: x.shape[-1]]
    # The mean goes first: in a dimension of mean 1e4 and deviation 1, x @ w + b would lose four digits.
    at_mean = fit.intercept[layer] + mean.astype(np.float64) @ weights.astype(np.float64)
    wide = weights.dtype == np.float64  # accelerators have no float64 products worth the name
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0] if wide else None):
        # In float64: where a probe explains little, predictions differ by less than float32 resolves beside the mean.
        x = np.asarray(x) if wide else x
        return np.asarray(_centred_product(x, mean, weights), np.float64) + at_mean


@jax.jit
def _centred_product(x, mean, weights):
    return product(shifted(x, mean, weights.dtype), weights)


def fit_moments(
    moments: Mapping[str, Moments],
    alphas: np.ndarray | Sequence[float] | None = None,
    *,
    alpha_per_target: bool = False,
    criterion: str = "generalised",
) -> RidgeFit:
    """Ridge probes from moments alone, for states that were never kept; one state's moments are read at a time.

    Args:
      moments: state name -> Moments with the leading axis [J]: a fold each, all about one shift.
      criterion: "generalised", or "k_fold" over the J >= 2 folds.
    Other arguments, result and errors are those of ``fit_states``.
    """
    if not moments:
        raise InputError("There are no states. Pass the moments of one or more.")
    solved = solve_moments(moments, alphas, alpha_per_target=alpha_per_target, criterion=criterion)
    return to_fit(solved, list(moments), "float64")


def solve_moments(
    moments: Mapping[str, Moments],
    alphas: np.ndarray | Sequence[float] | None = None,
    *,
    alpha_per_target: bool = False,
    criterion: str = "generalised",
) -> dict[str, np.ndarray]:
    """``fit_moments`` as arrays of which each has a leading axis of states, for ``to_fit``; none without states."""
    problems = search.check_options(alphas, "leave_one_out", None, None, "float64", None)
    if criterion not in ("generalised", "k_fold"):
        problems.append(f"moments cannot give {criterion!r}. Take generalised or k_fold, or keep the states.")
    if problems:
        raise InputError(*problems)
    choice = solve.make_choice(alphas, alpha_per_target, criterion, None, "float32", "cholesky", None)
    solved, y_means, y_scales = [], [], []
    for name, of_folds in moments.items():
        y_mean, y_scale = _target_scale(name, of_folds, criterion)
        with solving(of_folds.xx.shape):
            solved.append(solve.solve_moments(_over_scale(of_folds, y_scale), choice))
        search.check_finite([name], solved[-1])
        search.warn_of_condition([name], solved[-1], "float32")  # whatever dtype the sums are in: of float32 products
        y_means.append(y_mean)
        y_scales.append(y_scale)
    return _leaves(solved, y_means, y_scales)


def solve_sums(sums: solve.Sums, moments: Mapping[str, Moments], *, criterion: str = "k_fold") -> dict[str, np.ndarray]:
    """``solve_moments`` from streamed sums on the devices that have them, in float32.

    Args:
      sums: of the states in the order of ``moments``, and others after them that do not count.
      moments: as in ``solve_moments``; read where float32 does not suffice for a penalty that may be the best.
    """
    if not moments:
        return {}
    choice = solve.make_choice(None, False, criterion, None, "float32", "cholesky", None)
    names = list(moments)
    total = sums.count.sum()
    variance = sums.yy.sum(0) / total - (sums.y_sum.sum(0) / total) ** 2
    y_scale = np.sqrt(np.where(variance > 0, variance, 1.0))

    scaled = lambda state: _over_scale(moments[names[state]], y_scale)
    solved = solve.solve_sums(sums, y_scale, choice, len(names), scaled)
    for name, one in zip(names, solved, strict=True):
        search.check_finite([name], one)
        search.warn_of_condition([name], one, "float32")
    y_mean = sums.y_shift + sums.y_sum.sum(0) / total
    return _leaves(solved, [y_mean] * len(names), [y_scale] * len(names))


def _target_scale(name: str, m: Moments, criterion: str) -> tuple[np.ndarray, np.ndarray]:
    """(mean [C], deviation [C]) of the targets over all folds."""
    count = np.asarray(m.count, np.float64)
    folds = 2 if criterion == "k_fold" else 1
    if count.ndim != 1 or len(count) < folds or count.sum() < 2:
        raise InputError(
            f"The moments of state '{name}' count {count} rows; wanted a leading axis of {folds} or more folds, "
            "with 2 rows or more in all."
        )
    offset, squares = (np.sum(np.asarray(leaf, np.float64), axis=0) / count.sum() for leaf in (m.y_sum, m.yy))
    variance = squares - offset**2
    scale = np.sqrt(np.where(variance > 1e-12 * squares, variance, 1.0))  # a constant has nothing to divide by
    return np.asarray(m.y_shift, np.float64)[0] + offset, scale


def _over_scale(m: Moments, y_scale: np.ndarray) -> Moments:
    """Moments of y / y_scale, for y_scale [C] and moments with the leading axis [K]."""
    scale = y_scale[None]
    y_shift, y_sum, yy = m.y_shift / scale, m.y_sum / scale, m.yy / scale**2
    return m._replace(y_shift=y_shift, y_sum=y_sum, xy=m.xy / scale[None], yy=yy)


def _solve(
    names, read, y, alphas, alpha_per_target, criterion, groups, dtype, solver, devices, rows=None
) -> dict[str, np.ndarray]:
    """Batches of states, in bounded memory; see fit_ridge."""
    y = np.asarray(y, np.float64)
    fitted = y if rows is None else y[rows]
    problems = search.check_targets(fitted) + search.check_options(alphas, criterion, groups, len(y), dtype, solver)
    if problems:
        raise InputError(*problems)
    if not names:
        return {}
    # A constant has nothing to divide by.
    y_mean, y_scale = fitted.mean(0), np.where(np.ptp(fitted, axis=0) > 0, fitted.std(0), 1.0)

    def checked_read(name):
        state = read(name)
        if state.ndim != 2 or len(state) != len(y):
            raise InputError(f"State '{name}' has shape {state.shape}; wanted {len(y)} rows, one for each row of y.")
        return state

    first = checked_read(names[0])
    mesh, solver = solve.place(devices, solver, dtype)
    choice = solve.make_choice(alphas, alpha_per_target, criterion, groups, dtype, solver, mesh)
    solved = []
    with solving(first.shape):
        for batch, x in batches(names, checked_read, first, mesh):
            leaves = solve.solve_batch(x, (y - y_mean) / y_scale, choice, rows)
            solved.append(search.Solved(*(leaf[: len(batch)] for leaf in leaves)))
            search.check_finite(batch, solved[-1])
            search.warn_of_condition(batch, solved[-1], "float64")
    return _leaves(solved, [y_mean] * len(names), [y_scale] * len(names))


def _leaves(batches: list[search.Solved], y_means: Sequence, y_scales: Sequence) -> dict[str, np.ndarray]:
    """The layers of all batches; the targets of each have a mean and a deviation [C]."""
    if not batches:
        return {}
    leaves = search.Solved(*map(np.concatenate, zip(*batches, strict=True)))._asdict()
    return leaves | {"y_mean": np.stack(y_means), "y_scale": np.stack(y_scales)}


def to_fit(leaves: Mapping[str, np.ndarray], names: Sequence[str], dtype: str = "float32") -> RidgeFit:
    """The probes of all states, in the units of the targets.

    Args:
      leaves: from ``solve_states`` or ``solve_moments``.
      names: of all the states, for the notes.
      dtype: of the weights, unless some have more digits than float32 would keep.
    """
    leaves = dict(leaves)
    y_mean, y_scale = leaves.pop("y_mean"), leaves.pop("y_scale")
    solved = search.Solved(**leaves)
    dtype = "float64" if solved.wide.any() else dtype
    weights, x_mean = (solved.weights * y_scale[:, None]).astype(dtype), solved.x_mean.astype(dtype)
    intercept = y_mean - np.einsum("ld,ldc->lc", x_mean, weights, dtype=np.float64)
    tried = ~np.isnan(solved.losses).all(axis=(0, 2))
    alphas, losses = solved.alphas[:, tried], solved.losses[:, tried] * y_scale[:, None] ** 2
    notes = search.notes_of(names, solved)
    return RidgeFit(weights, intercept, x_mean, solved.alpha, alphas, losses, solved.condition, notes)
