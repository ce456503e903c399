"""Generalised and k-fold cross-validation of one layer from moments: the rows are not looked at again.

One Cholesky factorisation a fold and penalty, of the other folds' x'x scaled to unit diagonal, in ``dtype``; what its
rounding left of the weights is taken out by refinement, with products in the moments' own dtype. Moments in float64
with factors in float32 are thus as exact as float64 and three times as fast as an eigendecomposition a fold.
The size of the first correction tells how far float32 was off, that of the last one what is left.
"""

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int

from jaxprobe.probes.cholesky import REFINEMENTS, Criterion
from jaxprobe.probes.moments import Moments, combine, product
from jaxprobe.probes.root import inverse_root

# Of the last correction beside the solution; and of the first, where a trace rests on it. Up to this limit the
# criterion of planted states is within 1e-3 of float64's.
STEP_LIMIT = {"float64": 1e-6, "float32": 1e-3}
FIRST_LIMIT = 3e-3
# Errors beside the targets' squares: below this what they are a difference of leaves them less than three digits.
LEAST_ERRORS = {"float64": 1e-12, "float32": 1e-4}


class Normal(NamedTuple):
    """Centred moments of some rows, x scaled to deviations: gram has ones on its diagonal."""

    gram: Array  # [D, D]
    cross: Array  # [D, C]
    unscale: Array  # [D]: weights of x are weights times this; 1 for a constant dimension


def total(folds: Moments) -> Moments:
    """All folds, leading axis [J], together."""
    summed = combine(lambda leaf: jnp.sum(leaf, axis=0), folds)
    return summed._replace(x_shift=folds.x_shift[0], y_shift=folds.y_shift[0])


def of_sums(
    sums: Float[Array, "J 2 D columns"], count: Float[Array, " J"], y_sum: Float[Array, "J C"], yy: Float[Array, "J C"]
) -> Moments:
    """Moments of one state's streamed sums where these are; y is in the unit that the sums have it in.

    The second number of each sum is below the first one's rounding, which is no more than that of the products.
    """
    first, targets = sums[:, 0], y_sum.shape[1]
    width = first.shape[1]
    zeros = jnp.zeros((len(first), width), first.dtype), jnp.zeros_like(y_sum)
    x_sum, xy = first[:, :, width + targets], first[:, :, width : width + targets]
    return Moments(count, *zeros, x_sum, y_sum, first[:, :, :width], xy, yy)


def spread(folds: Moments, top: Int[Array, " k"]) -> tuple[Array, Array, Array]:
    """(mean of x [D], sums of squares about it and about the shift [2, D], products of ``top`` about it [k, k])."""
    m = total(folds)
    x_off = m.x_sum / m.count
    about_shift = jnp.diagonal(m.xx)
    block = m.xx[top][:, top] - jnp.outer(m.x_sum[top], x_off[top])
    return x_off, jnp.stack([about_shift - m.x_sum * x_off, about_shift]), block


def k_fold(
    folds: Moments, alphas: Float[Array, " A"], *, dtype: str, blocked: bool, together: bool, floor: float = 0.0
) -> Criterion:
    """k-fold mean squared errors in squared units of y, leading axis [A].

    Args:
      folds: leading axis [J], about one shift.
      dtype: of the factorisations.
      together: whether all folds are solved at once, which takes less time on an accelerator and more memory.
      floor: added to the diagonal of x'x, relative to it, where rounding left it indefinite.
    """

    def one_fold(fold: Moments, number: Int[Array, ""]):
        # Added up anew: a difference would have the rounding of all rows, and of a row far from all others its size.
        others = lambda leaf: reduce(jnp.add, (jnp.where(number == j, 0, part) for j, part in enumerate(leaf)))
        rest = combine(others, folds)
        x_off, y_off = rest.x_sum / rest.count, rest.y_sum / rest.count
        normal = _normal(rest, floor)
        # The fold about the others' means.
        x_sum, y_sum = fold.x_sum - fold.count * x_off, fold.y_sum - fold.count * y_off
        xx = fold.xx - jnp.outer(fold.x_sum, x_off) - jnp.outer(x_off, x_sum)
        xy = fold.xy - jnp.outer(fold.x_sum, y_off) - jnp.outer(x_off, y_sum)
        yy = fold.yy - (fold.y_sum + y_sum) * y_off

        def one_alpha(alpha):
            weights, _, last = _solve(normal, alpha, *_factor(normal, alpha, dtype, blocked))
            weights = weights * normal.unscale[:, None]
            errors = yy - 2 * jnp.sum(weights * xy, axis=0) + jnp.sum(weights * product(xx, weights), axis=0)
            cancelled = jnp.max(jnp.where(yy > 0, yy / jnp.where(errors > 0, errors, 0), 0))
            return errors, jnp.maximum(last / STEP_LIMIT[str(xx.dtype)], LEAST_ERRORS[str(xx.dtype)] * cancelled)

        return lax.map(one_alpha, alphas)

    numbered = folds, jnp.arange(len(folds.count))
    errors, doubt = jax.vmap(one_fold)(*numbered) if together else lax.map(lambda args: one_fold(*args), numbered)
    # jnp.max of NaN is NaN: a fold in doubt is not lost.
    return Criterion(jnp.sum(errors, axis=0) / jnp.sum(folds.count), jnp.max(doubt, axis=0), jnp.ones_like(alphas))


def generalised(
    folds: Moments, alphas: Float[Array, " A"], *, dtype: str, blocked: bool, together: bool, floor: float = 0.0
) -> Criterion:
    """Generalised cross-validation of the fit on all rows; arguments and result as of `k_fold`."""
    del together
    everything = total(folds)
    normal, n = _normal(everything, floor), everything.count
    y_squares = everything.yy - everything.y_sum**2 / n

    def one_alpha(alpha):
        root = _inverse(normal, alpha, dtype, blocked)
        weights, first, last = _solve(normal, alpha, lambda b: product(root.T, product(root, b)), root.dtype)
        penalty = alpha * jnp.sum((weights * normal.unscale[:, None]) ** 2, axis=0)
        squares = y_squares - jnp.sum(weights * normal.cross, axis=0) - penalty
        trace = alpha * jnp.sum(((root * normal.unscale.astype(root.dtype)[None]) ** 2).astype(n.dtype))
        others = n - 1 - len(root) + trace
        doubt = jnp.maximum(first / FIRST_LIMIT, last / STEP_LIMIT[str(n.dtype)])
        return Criterion(n * squares / others**2, jnp.where(others > 0, doubt, jnp.nan), jnp.ones_like(alpha))

    return lax.map(one_alpha, alphas)


def weights_at(
    folds: Moments, alpha: Float[Array, ""], *, dtype: str, blocked: bool, floor: float = 0.0
) -> tuple[Float[Array, "D C"], Float[Array, ""], Float[Array, ""]]:
    """(weights, condition, doubt) of the fit on all rows at one penalty."""
    normal = _normal(total(folds), floor)
    root = _inverse(normal, alpha, dtype, blocked)
    weights, _, last = _solve(normal, alpha, lambda b: product(root.T, product(root, b)), root.dtype)
    condition = jnp.max(jnp.diagonal(normal.gram).astype(root.dtype) * jnp.sum(root**2, axis=0))
    finite = jnp.isfinite(normal.gram).all()
    doubt = last / STEP_LIMIT[str(normal.gram.dtype)]
    condition = jnp.where(jnp.isnan(condition), jnp.inf, condition)
    return weights * normal.unscale[:, None], jnp.where(finite, condition, jnp.nan).astype(alpha.dtype), doubt


def _normal(m: Moments, floor: float) -> Normal:
    x_off, y_off = m.x_sum / m.count, m.y_sum / m.count
    gram, cross = m.xx - jnp.outer(m.x_sum, x_off), m.xy - jnp.outer(m.x_sum, y_off)
    squares = jnp.diagonal(gram)
    unscale = jnp.where(squares > 0, lax.rsqrt(jnp.where(squares > 0, squares, 1)), 1)
    gram = gram * unscale[:, None] * unscale[None, :] + floor * jnp.eye(len(gram), dtype=gram.dtype)
    return Normal(gram, cross * unscale[:, None], unscale)


def _penalised(normal: Normal, alpha, dtype: str):
    return (normal.gram + jnp.diag(alpha * normal.unscale**2)).astype(dtype)


def _inverse(normal: Normal, alpha, dtype: str, blocked: bool):
    return inverse_root(_penalised(normal, alpha, dtype), blocked=blocked)


def _factor(normal: Normal, alpha, dtype: str, blocked: bool):
    """(a function that solves by the factor, its dtype); without the inverse where there is a triangular solver."""
    if blocked:
        root = _inverse(normal, alpha, dtype, blocked)
        return lambda b: product(root.T, product(root, b)), dtype
    lower = lax.linalg.cholesky(_penalised(normal, alpha, dtype), symmetrize_input=False)
    half = lambda b: solve_triangular(lower, b, lower=True)
    return lambda b: solve_triangular(lower, half(b), lower=True, trans=1), dtype


def _solve(normal: Normal, alpha, solve, dtype):
    """(weights of scaled x, size of the first correction and of the last beside them), worst of the targets."""
    weights, sizes = jnp.zeros_like(normal.cross), []
    for _ in range(1 + REFINEMENTS):
        rest = normal.cross - product(normal.gram, weights) - alpha * normal.unscale[:, None] ** 2 * weights
        change = solve(rest.astype(dtype)).astype(rest.dtype)
        weights = weights + change
        sizes.append(jnp.linalg.norm(change, axis=0))
    whole = jnp.where(sizes[0] > 0, sizes[0], 1)  # a target with nothing to explain
    return weights, jnp.max(sizes[1] / whole), jnp.max(sizes[-1] / whole)
