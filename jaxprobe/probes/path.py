"""One layer looked at closely: every penalty, every row, every group held out, all from one factorisation."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprobe.errors import InputError
from jaxprobe.probes import factors
from jaxprobe.probes.groups import group_predictions, sort_groups
from jaxprobe.probes.ridge import fit_ridge, predict_layer
from jaxprobe.probes.solve import check_options, check_targets
from jaxprobe.probes.spread import eigh_device, solving


class RidgePath(NamedTuple):
    """A layer's probes at A penalties, in target units.

    Attributes:
      weights: [A, D, C].
      intercept: [A, C].
      predictions: [A, N, C] of the training rows.
      loo_residuals: [A, N, C] y less the prediction of the probe fitted without the row.
    """

    weights: np.ndarray
    intercept: np.ndarray
    predictions: np.ndarray
    loo_residuals: np.ndarray


class HeldOut(NamedTuple):
    """A group's predictions [n, C] by the probe fitted on the others, in the group's row order, and its penalty."""

    predictions: np.ndarray
    alpha: float


def ridge_path(
    x: np.ndarray | Array, y: np.ndarray, alphas: Sequence[float] | np.ndarray, *, dtype: str = "float32"
) -> RidgePath:
    """Weights, predictions and exact leave-one-out residuals of one layer for every penalty.

    Args:
      x: [N, D] hidden states of one layer; y: [N, C] targets; alphas: [A] penalties > 0, as in ``fit_ridge``.
    """
    y, y_mean, y_scale = _checked(x, y, alphas, dtype)
    with solving(np.shape(x)), jax.default_device(eigh_device()):
        f = _factor(x, y, dtype=dtype)
        x_mean, *path = map(np.asarray, _path(f, x, y, np.asarray(alphas, np.float64), dtype=dtype))
    weights, residuals, loo_residuals = (leaf * y_scale for leaf in path)
    return RidgePath(weights, y_mean - x_mean @ weights, y * y_scale + y_mean - residuals, loo_residuals)


def leave_group_out(
    x: np.ndarray | Array,
    y: np.ndarray,
    groups: np.ndarray | Sequence,
    alphas: Sequence[float] | np.ndarray,
    *,
    dtype: str = "float32",
) -> Float[np.ndarray, "A N C"]:
    """Predictions [A, N, C] of every row by the probe fitted without the row's group, for every group at once.

    Args:
      x: [N, D] hidden states of one layer; y: [N, C] targets; alphas: [A] penalties > 0, as in ``fit_ridge``.
      groups: [N] labels, at least two different ones.
    """
    y, y_mean, y_scale = _checked(x, y, alphas, dtype, groups)
    with solving(np.shape(x)), jax.default_device(eigh_device()):
        f = _factor(x, y, dtype=dtype)
        return group_predictions(f, x, y, sort_groups(groups), np.asarray(alphas, np.float64)) * y_scale + y_mean


def hold_out_groups(
    x: np.ndarray | Array,
    y: np.ndarray,
    groups: np.ndarray | Sequence,
    held: Sequence,
    alphas: Sequence[float] | np.ndarray | None = None,
    *,
    dtype: str = "float32",
) -> dict:
    """Each held group's predictions with the penalty chosen anew, by leaving out each of the other groups in turn.

    What is at hand when a probe meets a new country: neither its weights nor its penalty have seen the group.

    Args:
      x: [N, D] hidden states of one layer; y: [N, C] targets; groups: [N] labels; alphas: as in ``fit_ridge``.
      held: some of the labels.
    Returns:
      label -> HeldOut.
    """
    groups = np.asarray(groups)
    unknown = [label for label in held if not (groups == label).any()]
    if unknown:
        raise InputError(f"No row is of group {', '.join(map(str, unknown))}. Take labels of the column.")
    result = {}
    for label in held:
        inside = groups == label
        criterion = dict(criterion="leave_one_group_out", groups=groups[~inside])
        fit = fit_ridge(x[~inside][None], y[~inside], alphas, dtype=dtype, names=[f"without {label}"], **criterion)
        result[label] = HeldOut(predict_layer(fit, 0, x[inside]), float(fit.alpha[0]))
    return result


def _checked(x, y, alphas, dtype, groups=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(y standardised, its mean, its deviation)."""
    y = np.asarray(y, np.float64)
    criterion = "leave_one_out" if groups is None else "leave_one_group_out"
    problems = check_targets(y) + check_options(alphas, criterion, groups, len(y), dtype, None)
    if np.ndim(x) != 2 or len(x) != len(y):
        problems.append(f"x has shape {np.shape(x)}; wanted [row, dimension] of one layer, with {len(y)} rows as y.")
    elif not np.isfinite(np.asarray(x, np.float32)).all():
        problems.append("x holds values that are not finite. Read it again, in float32 if it was narrower.")
    if problems:
        raise InputError(*problems)
    mean, scale = y.mean(0), np.where(np.ptp(y, axis=0) > 0, y.std(0), 1.0)
    return (y - mean) / scale, mean, scale


_factor = jax.jit(factors.factor, static_argnames="dtype")


@partial(jax.jit, static_argnames="dtype")
def _path(f, x, y, alphas, *, dtype):
    residuals, others = factors.residuals(f, x, y, alphas, n=len(x), dtype=dtype)
    weights = jax.vmap(lambda alpha: factors.weights_at(f, x, jnp.full(y.shape[1], alpha)))(alphas)
    by_alpha = lambda rows: jnp.moveaxis(rows, 1, 0)
    return f.x_mean, weights, by_alpha(residuals), by_alpha(residuals / others[:, :, None])
