"""Generalised and k-fold cross-validation of one layer from moments: the rows are not looked at again.

One Cholesky factorisation a fold and penalty, of the other folds' x'x scaled to unit diagonal, in ``dtype``; what its
rounding left of the weights is taken out by refinement, with products in the moments' own dtype. Moments in float64
with factors in float32 are thus as exact as float64 and three times as fast as an eigendecomposition a fold.
The size of the first correction tells how far float32 was off, that of the last one what is left.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt

from jaxprobe.probes.cholesky import REFINEMENTS, Criterion
from jaxprobe.probes.moments import Moments, combine, product
from jaxprobe.probes.packed import packing, sums_of, unpack
from jaxprobe.probes.root import factor, inverse_root, solve_lower, solve_upper

# Of the last correction beside the solution; and of the first, where a trace rests on it. Up to this limit the
# criterion of planted states is within 1e-3 of float64's.
STEP_LIMIT = {"float64": 1e-6, "float32": 1e-3}
FIRST_LIMIT = 3e-3
# A correction beside the solution: the next would be smaller by what this one is beside the first.
SETTLED = {"float64": 1e-8, "float32": 1e-6}
# Errors beside the targets' squares: below this what they are a difference of leaves them less than three digits.
LEAST_ERRORS = {"float64": 1e-12, "float32": 1e-4}


class Normal(NamedTuple):
    """Centred moments of some rows, x scaled to deviations: gram has ones on its diagonal."""

    gram: Array  # [D, D]
    cross: Array  # [D, C]
    unscale: Array  # [D]: weights of x are weights times this; 1 for a constant dimension


def total(folds: Moments) -> Moments:
    """All folds, leading axis [J], together."""
    summed = combine(lambda leaf: sum(map(as_sum, leaf)), folds)
    return whole(summed._replace(x_shift=folds.x_shift[0], y_shift=folds.y_shift[0]))


def of_sums(
    words: UInt[Array, "J words columns"],
    count: Float[Array, " J"],
    y_sum: Float[Array, "J C"],
    yy: Float[Array, "J C"],
    width: int,
) -> Moments:
    """Moments of one state's streamed sums where these are, x'x still packed; y is in the unit that the sums have.

    What the sums' additions rounded off is below the rounding of their products, and is left out.
    """
    targets = y_sum.shape[1]
    beside = jax.vmap(lambda one: unpack(sums_of(one), packing(width, targets))[1])(words)
    zeros = jnp.zeros((len(words), width), beside.dtype), jnp.zeros_like(y_sum)
    return Moments(count, *zeros, beside[:, :, targets], y_sum, words, beside[:, :, :targets], yy)


def as_sum(leaf: Array) -> Array:
    """Numbers that can be added, of a leaf that may be packed words."""
    return sums_of(leaf) if leaf.dtype == jnp.uint32 else leaf


def whole(m: Moments) -> Moments:
    """With x'x as a square, where it is packed."""
    (width,), (targets,) = m.x_sum.shape, m.y_sum.shape
    if m.xx.shape == (width, width):
        return m
    return m._replace(xx=unpack(as_sum(m.xx), packing(width, targets))[0])


def spread(folds: Moments, top: Int[Array, " k"]) -> tuple[Array, Array, Array]:
    """(mean of x [D], sums of squares about it and about the shift [2, D], products of ``top`` about it [k, k])."""
    m = total(folds)
    x_off = m.x_sum / m.count
    about_shift = jnp.diagonal(m.xx)
    block = m.xx[top][:, top] - jnp.outer(m.x_sum[top], x_off[top])
    return x_off, jnp.stack([about_shift - m.x_sum * x_off, about_shift]), block


def k_fold(
    folds: Moments,
    alphas: Float[Array, " A"],
    *,
    dtype: str,
    blocked: bool,
    together: bool = False,
    side_by_side: int = 1,
    floor: float = 0.0,
) -> Criterion:
    """k-fold mean squared errors in squared units of y, leading axis [A].

    Args:
      folds: leading axis [J], about one shift.
      dtype: of the factorisations.
      together: whether all folds are solved at once, which takes less time on an accelerator and more memory.
      side_by_side: how many penalties are solved at once, each by calls of its own, as a CPU's cores do.
      floor: added to the diagonal of x'x, relative to it, where rounding left it indefinite.
    """

    def one_fold(number: Int[Array, ""]):
        # Added up anew: a difference would have the rounding of all rows, and of a row far from all others its size.
        others = lambda leaf: sum(jnp.where(number == j, 0, as_sum(part)) for j, part in enumerate(leaf))
        rest = whole(combine(others, folds))
        x_off, y_off = rest.x_sum / rest.count, rest.y_sum / rest.count
        normal = _normal(rest, floor)
        narrow = normal.gram.astype(dtype)  # once, not for every penalty

        def one_alpha(alpha):
            half, _ = factor(_penalised(narrow, normal, alpha), blocked=blocked)
            weights, _, last = _solve(normal, alpha, lambda b: solve_upper(half, solve_lower(half, b)), dtype)
            return weights * normal.unscale[:, None], last

        weights, last = _each(one_alpha, alphas, side_by_side)  # [A, D, C], [A]
        # Only now, so that both x'x need not be there at once.
        weights, number = lax.optimization_barrier((weights, number))
        fold = whole(combine(lambda leaf: leaf[number], folds))
        # The fold about the others' means.
        x_sum, y_sum = fold.x_sum - fold.count * x_off, fold.y_sum - fold.count * y_off
        xx = fold.xx - jnp.outer(fold.x_sum, x_off) - jnp.outer(x_off, x_sum)
        xy = fold.xy - jnp.outer(fold.x_sum, y_off) - jnp.outer(x_off, y_sum)
        yy = fold.yy - (fold.y_sum + y_sum) * y_off

        explained = product(xx, jnp.moveaxis(weights, 0, 1).reshape(len(xx), -1))
        explained = jnp.moveaxis(explained.reshape(len(xx), len(alphas), -1), 0, 1)
        errors = yy[None] - 2 * jnp.sum(weights * xy[None], axis=1) + jnp.sum(weights * explained, axis=1)
        cancelled = jnp.max(jnp.where(yy[None] > 0, yy[None] / jnp.where(errors > 0, errors, 0), 0), axis=1)
        return errors, jnp.maximum(last / STEP_LIMIT[str(xx.dtype)], LEAST_ERRORS[str(xx.dtype)] * cancelled)

    numbers = jnp.arange(len(folds.count))
    errors, doubt = jax.vmap(one_fold)(numbers) if together else lax.map(one_fold, numbers)
    # jnp.max of NaN is NaN: a fold in doubt is not lost.
    return Criterion(jnp.sum(errors, axis=0) / jnp.sum(folds.count), jnp.max(doubt, axis=0), jnp.ones_like(alphas))


def generalised(
    folds: Moments, alphas: Float[Array, " A"], *, dtype: str, blocked: bool, side_by_side: int = 1, floor: float = 0.0
) -> Criterion:
    """Generalised cross-validation of the fit on all rows; arguments and result as of `k_fold`."""
    everything = total(folds)
    normal, n = _normal(everything, floor), everything.count
    y_squares = _squares(everything)

    def one_alpha(alpha):
        root = _inverse(normal, alpha, dtype, blocked)
        weights, first, last = _solve(normal, alpha, lambda b: product(root, product(root.T, b)), root.dtype)
        squares = y_squares - jnp.sum(weights * normal.cross, axis=0) - _penalty(normal, weights, alpha)
        trace = alpha * jnp.sum(((root * normal.unscale.astype(root.dtype)[:, None]) ** 2).astype(n.dtype))
        others = n - 1 - len(root) + trace
        doubt = jnp.maximum(first / FIRST_LIMIT, last / STEP_LIMIT[str(n.dtype)])
        return Criterion(n * squares / others**2, jnp.where(others > 0, doubt, jnp.nan), jnp.ones_like(alpha))

    return _each(one_alpha, alphas, side_by_side)


def weights_at(
    folds: Moments, alpha: Float[Array, ""], *, dtype: str, blocked: bool, floor: float = 0.0
) -> tuple[Float[Array, "D C"], Float[Array, ""], Float[Array, ""], Float[Array, " C"]]:
    """(weights, condition, doubt, R2 on these rows) of the fit on all rows at one penalty."""
    everything = total(folds)
    normal = _normal(everything, floor)
    root = _inverse(normal, alpha, dtype, blocked)
    weights, _, last = _solve(normal, alpha, lambda b: product(root, product(root.T, b)), root.dtype)
    condition = jnp.max(jnp.diagonal(normal.gram).astype(root.dtype) * jnp.sum(root**2, axis=1))
    finite = jnp.isfinite(normal.gram).all()
    doubt = last / STEP_LIMIT[str(normal.gram.dtype)]
    condition = jnp.where(jnp.isnan(condition), jnp.inf, condition)
    y_squares = _squares(everything)
    # y'y less the residual's sum of squares, as x'x w is x'y - alpha w.
    explained = jnp.sum(weights * normal.cross, axis=0) + _penalty(normal, weights, alpha)
    r2 = jnp.where(y_squares > 0, explained / jnp.where(y_squares > 0, y_squares, 1), jnp.nan)
    return weights * normal.unscale[:, None], jnp.where(finite, condition, jnp.nan).astype(alpha.dtype), doubt, r2


def _each(function, values, side_by_side: int):
    """``function`` of each of ``values``, stacked."""
    return lax.scan(lambda _, value: (None, function(value)), None, values, unroll=side_by_side)[1]


def _normal(m: Moments, floor: float) -> Normal:
    x_off, y_off = m.x_sum / m.count, m.y_sum / m.count
    squares = jnp.diagonal(m.xx) - m.x_sum * x_off
    unscale = jnp.where(squares > 0, lax.rsqrt(jnp.where(squares > 0, squares, 1)), 1)
    gram = (m.xx - jnp.outer(m.x_sum, x_off)) * unscale[:, None] * unscale[None, :]
    gram = gram + floor * jnp.eye(len(gram), dtype=gram.dtype) if floor else gram
    return Normal(gram, (m.xy - jnp.outer(m.x_sum, y_off)) * unscale[:, None], unscale)


def _squares(m: Moments):
    """Of y about its mean, [C]."""
    return m.yy - m.y_sum**2 / m.count


def _penalty(normal: Normal, weights, alpha):
    """alpha |w|^2 of each target."""
    return alpha * jnp.sum((weights * normal.unscale[:, None]) ** 2, axis=0)


def _penalised(gram, normal: Normal, alpha):
    """``gram`` [D, D] of ``normal``, in any dtype, with the penalty on its diagonal."""
    return gram + jnp.diag((alpha * normal.unscale**2).astype(gram.dtype))


def _inverse(normal: Normal, alpha, dtype: str, blocked: bool):
    return inverse_root(_penalised(normal.gram.astype(dtype), normal, alpha), blocked=blocked)


def _solve(normal: Normal, alpha, solve, dtype):
    """(weights of scaled x, size of the first correction and of the last beside them), worst of the targets."""
    solved = lambda b: solve(b.astype(dtype)).astype(b.dtype)
    size = lambda change: jnp.linalg.norm(change, axis=0)
    weights = solved(normal.cross)
    all_of_it = jnp.where(size(weights) > 0, size(weights), 1)  # a target with nothing to explain

    def correct(state):
        weights, first, last, turn = state
        rest = normal.cross - product(normal.gram, weights) - alpha * normal.unscale[:, None] ** 2 * weights
        change = solved(rest)
        last = jnp.max(size(change) / all_of_it)
        return weights + change, jnp.where(turn == 0, last, first), last, turn + 1

    unsettled = lambda state: (state[2] > SETTLED[str(weights.dtype)]) & (state[3] < REFINEMENTS)
    start = weights, jnp.asarray(jnp.inf, weights.dtype), jnp.asarray(jnp.inf, weights.dtype), 0
    return lax.while_loop(unsettled, correct, start)[:3]
