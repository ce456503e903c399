"""Ridge from rows by one float32 Cholesky factorisation a penalty: for accelerators, with no eigendecomposition.

For one layer, x [N, D] centred, its largest dimensions along their principal axes (``moments.largest_block``):

    feature space, N >= 0.75 D:  R (x'x + alpha I) R' = I,  Z = x R',  h_i = 1/N + |z_i|^2,  fitted = Z Z'y
    sample space, below it:      x x' without the largest dimensions factored, these put back by Woodbury's identity

What float32 did to it is measured in the same program. In feature space that is |I - R (x'x + alpha I) R'|: estimated
by 16 random vectors that go through the rows themselves, and for the 16 rows of least 1 - h found, and corrected. Where
it is too large the factor is whitened, R <- R2 R with R2 (Z'Z + alpha R R') R2' = I, which takes no digits but those of
the rows (CholeskyQR2: Yamamoto, Nakatsukasa, Yanagisawa & Fukaya 2015). In sample space |y - residual - x w| / |y| is
watched. What is left then, and 1 - h where it cancels, goes to float64 on the host: the same functions in another
dtype, see solve.py.

Every function is of one layer, in the dtype of its rows.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxprobe.probes.eigen import constant_share, layer_scale
from jaxprobe.probes.moments import ROTATED, assemble, largest_block, product, rotate, strips
from jaxprobe.probes.root import factor, inverse_root, solve_lower, solve_upper

FEATURE_SPACE = 0.75  # rows a dimension from which x'x is factored; below, 1 - h would cancel
# With a doubt of 1 and more float32 is not believed. On 636 fits of real and planted states no criterion was wrong by
# more than 1e-3 with a deviation below 0.03, or in sample space by more than 1.6 times the mismatch.
DEVIATION_LIMIT = 1e-2
MISMATCH_LIMIT = 6e-4
CORRECTION_LIMIT = 3e-3  # of the least 1 - h, beside these
LEAST_OTHERS = 1e-4  # 1 - h, in units of what it is a difference of
VECTORS = 16
WHITENINGS = 5
REFINEMENTS = 3
STEP_LIMIT = 1e-3  # of the last refinement, beside the solution
SHIFT = 1e-4  # of the diagonal: with it added no float32 factorisation breaks down


class Survey(NamedTuple):
    """One pass over a layer's rows, before they are rotated."""

    x_mean: Array  # [D]
    x_rest: Array  # [D] what the mean in this dtype is off by
    varies: Array  # [D] bool
    scale: Array  # [] of the penalties
    top: Array  # [k]
    block: Array  # [k, k]
    finite: Array  # [] bool


class Layer(NamedTuple):
    """One layer's rows, ready to be fitted."""

    rows: Array  # [N, D] centred and rotated
    top: Array  # [k] the rotated dimensions
    matrix: Array  # [D, D] rows'rows, or [N, N] of all but the rotated dimensions


class Criterion(NamedTuple):
    """What one penalty gives."""

    losses: Array  # [C] in the variance of y
    doubt: Array  # [] above 1, or NaN: not to be believed
    least: Array  # [] the least 1 - h of a row


def in_feature_space(n: int, d: int) -> bool:
    """Whether x'x is factored, not x x'."""
    return n >= FEATURE_SPACE * d


def rotated(n: int, d: int) -> int:
    """How many dimensions are rotated; in sample space the others must hold most of what the rows are."""
    return min(ROTATED, d if in_feature_space(n, d) else -(-d // 2))


def survey(x: Float[Array, "N D"], *, dtype: str) -> Survey:
    """Mean, scale and largest dimensions of one layer's rows."""
    x = x.astype(dtype)
    x_mean = jnp.mean(x, axis=0)
    varies = jnp.max(x, axis=0) > jnp.min(x, axis=0)
    centred = x - x_mean[None]
    x_rest = jnp.mean(centred, axis=0)
    centred = jnp.where(varies[None], centred - x_rest[None], 0)  # rounding leaves something of a constant
    top, block = largest_block(centred, rotated(*x.shape))
    return Survey(x_mean, x_rest, varies, layer_scale(jnp.sum(centred**2, axis=0)), top, block, jnp.isfinite(x).all())


def prepare(x: Float[Array, "N D"], s: Survey, axes: Float[Array, "k k"]) -> Layer:
    """Rows centred and rotated, and the matrix of all penalties; ``axes`` from ``moments.principal_axes``."""
    x = jnp.where(s.varies[None], x.astype(s.x_mean.dtype), s.x_mean[None])
    rows = rotate(x, s.x_mean, s.top, axes)
    rows = rows - jnp.mean(rows, axis=0)[None]
    if in_feature_space(*x.shape):
        return Layer(rows, s.top, assemble(strips(rows)))
    kernel = assemble(strips(rows.at[:, s.top].set(0).T))
    kernel = kernel - kernel.mean(0)[None, :] - kernel.mean(1)[:, None] + kernel.mean()
    # The constant vector's eigenvalue, 0, would cancel in 1 - h: it gets the mean one, see ``constant_share``.
    return Layer(rows, s.top, kernel + jnp.trace(kernel) / len(x) ** 2)


def criteria(
    layer: Layer,
    y: Float[Array, "N C"],
    alphas: Float[Array, " A"],
    groups: tuple[tuple[Array, Array], ...],
    *,
    criterion: str,
    whiten: bool,
    blocked: bool,
) -> Criterion:
    """The criterion at every penalty, leading axis [A].

    Args:
      y: standardised.
      groups: of "leave_one_group_out" and "k_fold": sets of groups of about one size, (rows [G, S], inside [G, S]).
      criterion: "leave_one_out", "generalised", or one by groups.
      whiten: only in feature space.
      blocked: see ``root.py``.
    """

    def one_alpha(alpha):
        residual, own, cross, doubt = _fit(layer, y, alpha, whiten, blocked)[:4]
        n, (others, part) = len(y), own
        share = jnp.min(others / part)
        least = jnp.min(others)
        if criterion == "leave_one_out":
            losses = jnp.mean((residual / others[:, None]) ** 2, axis=0)
        elif criterion == "generalised":
            losses = n * jnp.sum(residual**2, axis=0) / jnp.sum(others) ** 2
            share = jnp.sum(others) / n
        else:
            losses, least = _without_groups(residual, cross, groups, blocked)
            losses, share = losses / n, least
        # Where 1 - h is a small difference of large numbers its rounding is what is left of it.
        doubt = jnp.where(share > 0, jnp.maximum(doubt, LEAST_OTHERS / share), jnp.nan)
        return Criterion(losses, doubt, least)

    return lax.map(one_alpha, alphas)


def weights_at(
    layer: Layer, y: Float[Array, "N C"], alpha: Float[Array, ""], *, whiten: bool, blocked: bool
) -> tuple[Float[Array, "D C"], Float[Array, ""], Float[Array, ""]]:
    """(weights of the rotated dimensions, condition, doubt) at one penalty; see ``eigen.condition_at``."""
    *_, doubt, weights, condition = _fit(layer, y, alpha, whiten, blocked)
    found = condition()
    return weights, jnp.where(jnp.isnan(found), jnp.inf, found), doubt


def _fit(layer: Layer, y, alpha, whiten: bool, blocked: bool):
    """(residual [N, C], (1 - h [N], what it was taken from), 1 - h by pairs of rows, doubt, weights, condition).

    Pairs and condition are functions: what is not called is not computed.
    """
    if in_feature_space(*layer.rows.shape):
        return _fit_features(layer, y, alpha, whiten, blocked)
    return _fit_samples(layer, y, alpha, blocked)


def _fit_features(layer: Layer, y, alpha, whiten, blocked):
    rows, gram, n = layer.rows, layer.matrix, len(y)
    identity = jnp.eye(len(gram), dtype=rows.dtype)
    signs = jax.random.rademacher(jax.random.key(0), (len(gram), VECTORS), rows.dtype)

    def missed_by(z, both, vectors):  # (I - R (x'x + alpha I) R') of them
        return vectors - product(z.T, product(z, vectors)) - alpha * both(vectors)

    def size_of(missed):  # of the whole, from what it makes of random signs
        return jnp.sqrt(jnp.sum(missed[:, :VECTORS] ** 2) / VECTORS)

    if whiten:
        # The first factor is the first turn of the loop: a TPU compiles for as long again for each in a program.
        whole = lambda z, right: gram + jnp.diag(alpha + SHIFT * jnp.diagonal(gram))
        left = lambda z, right: assemble(strips(jnp.concatenate([z, jnp.sqrt(alpha) * right])))
        through = lambda right: lambda b: product(right.T, product(right, b))

        def step(state):
            z, right, _, steps = state
            again = factor(lax.cond(steps == 0, whole, left, z, right), jnp.concatenate([z, right]), blocked=blocked)[1]
            z, right = again[:n], again[n:]
            return z, right, size_of(missed_by(z, through(right), signs)), steps + 1

        unsettled = lambda state: ~(state[2] < 0.1 * DEVIATION_LIMIT) & (state[3] <= WHITENINGS)
        z, right, *_ = lax.while_loop(unsettled, step, (rows, identity, jnp.asarray(jnp.inf, rows.dtype), 0))
        upper, both = lambda b: product(right, b), through(right)
    else:
        half, z = factor(gram + alpha * identity, rows, blocked=blocked)
        right = None
        upper, both = partial(solve_upper, half), lambda b: solve_lower(half, solve_upper(half, b))
    # The coefficients of Z, and what rounding left of their normal equations.
    correct = lambda _, found: found + product(z.T, y - product(z, found)) - alpha * both(found)
    coefficients = lax.fori_loop(0, 2, correct, product(z.T, y))
    residual = y - product(z, coefficients)
    others = 1 - 1 / n - jnp.sum(z * z, axis=1)
    nearest = lax.top_k(-others, min(VECTORS, n))[1]
    missed = missed_by(z, both, jnp.concatenate([signs, z[nearest].T], axis=1))
    others, of_nearest = _correct(others, nearest, -jnp.sum(z[nearest].T * missed[:, VECTORS:], axis=0))
    doubt = jnp.maximum(size_of(missed) / DEVIATION_LIMIT, of_nearest)
    by_pairs = lambda chosen: jnp.eye(len(chosen), dtype=z.dtype) - 1 / n - product(z[chosen], z[chosen].T)

    def condition():
        root = inverse_root(gram + alpha * identity, blocked=blocked) if right is None else right
        return jnp.max(jnp.diagonal(gram) * jnp.sum(root * root, axis=1))

    own = others, jnp.ones_like(others)
    return residual, own, by_pairs, doubt, upper(coefficients), condition


def _correct(others, nearest, correction):
    """(1 - h with that of the rows nearest to 0 corrected, a doubt: what corrections leave is about their square)."""
    corrected = others[nearest] + correction
    size = jnp.where(corrected > 0, abs(correction) / corrected, jnp.inf)
    return others.at[nearest].set(corrected), jnp.max(size) / CORRECTION_LIMIT


def _fit_samples(layer: Layer, y, alpha, blocked):
    rows, top, kernel = layer
    n = len(y)
    largest, rest = rows[:, top], rows.at[:, top].set(0)
    squares = jnp.sum(largest**2, axis=0)
    used = squares > 1e-9 * alpha
    norms = jnp.sqrt(jnp.where(used, squares, 1))
    directions = jnp.where(used[None], largest / norms[None], 0)
    # B = kernel + alpha I of the others; alpha B^-1 = L L'.
    lower = jnp.sqrt(alpha) * inverse_root(kernel + alpha * jnp.eye(n, dtype=kernel.dtype), blocked=blocked)
    u = product(lower.T, directions)
    small = product(u.T, u) + jnp.diag(alpha / norms**2)
    root = inverse_root(small, blocked=blocked)
    v = product(lower, product(u, root))
    # alpha (x x' + alpha I)^-1 = L L' - V V'; the constant vector's share is still to go.
    solved = product(lower, product(lower.T, y))
    mixed = product(root.T, product(directions.T, solved))
    residual = solved - product(v, mixed)
    weights = product(rest.T, residual) / alpha
    weights = weights.at[top].set(product(root, mixed) / norms[:, None])  # as x'residual it would cancel
    share = constant_share(jnp.diagonal(kernel), alpha[None])[0]
    whole = jnp.sum(lower**2, axis=1)
    others = whole - jnp.sum(v**2, axis=1) - share

    def by_pairs(chosen):
        return product(lower[chosen], lower[chosen].T) - product(v[chosen], v[chosen].T) - share

    mismatch = jnp.linalg.norm(y - residual - product(rows, weights)) / jnp.linalg.norm(y)
    condition = lambda: jnp.max((jnp.diagonal(kernel) + alpha) * whole / alpha)
    return residual, (others, whole), by_pairs, mismatch / MISMATCH_LIMIT, weights, condition


def _without_groups(residual, by_pairs, groups, blocked):
    """(squared errors [C] of every group's rows by the fit without it, the least 1 - h without the rest of it)."""

    def one_group(group: tuple[Int[Array, " S"], Bool[Array, " S"]]):
        rows, inside = group
        both = inside[:, None] & inside[None, :]
        root = inverse_root(jnp.where(both, by_pairs(rows), jnp.eye(len(rows), dtype=residual.dtype)), blocked=blocked)
        held_out = product(root, product(root.T, jnp.where(inside[:, None], residual[rows], 0)))
        return jnp.sum(held_out**2, axis=0), 1 / jnp.max(jnp.sum(root**2, axis=1))

    parts = [lax.map(one_group, alike) for alike in groups]
    losses = sum(jnp.sum(part[0], axis=0) for part in parts)
    return losses, jnp.min(jnp.stack([jnp.min(part[1]) for part in parts]))


def fold_criteria(
    layer: Layer,
    y: Float[Array, "N C"],
    alphas: Float[Array, " A"],
    inside: Bool[Array, "J N"],
    *,
    blocked: bool,
) -> Criterion:
    """k-fold or leave-one-group-out over a few large groups, each fitted without: in feature space.

    The others' x'x is made of their rows, not as a difference that a row far from all others would spoil.
    """
    n = len(y)

    def one_fold(held):
        rest = ~held[:, None]
        count = jnp.sum(rest).astype(y.dtype)
        x_mean = jnp.sum(jnp.where(rest, layer.rows, 0), axis=0) / count
        y_mean = jnp.sum(jnp.where(rest, y, 0), axis=0) / count
        every_row, target = layer.rows - x_mean[None], y - y_mean[None]
        rows, fitted = jnp.where(rest, every_row, 0), jnp.where(rest, target, 0)
        gram = assemble(strips(rows))

        def one_alpha(alpha):
            half, _ = factor(gram + alpha * jnp.eye(len(gram), dtype=gram.dtype), blocked=blocked)
            weights, sizes = jnp.zeros((len(gram), y.shape[1]), y.dtype), []
            for _ in range(1 + REFINEMENTS):  # the solution, then what rounding left of it
                gradient = product(rows.T, fitted - product(rows, weights)) - alpha * weights
                change = solve_lower(half, gradient)
                weights = weights + solve_upper(half, change)
                sizes.append(jnp.linalg.norm(change))
            residual = jnp.where(held[:, None], target - product(every_row, weights), 0)
            return jnp.sum(residual**2, axis=0), sizes[-1] / sizes[0] / STEP_LIMIT

        return lax.map(one_alpha, alphas)

    losses, doubt = lax.map(one_fold, inside)
    return Criterion(jnp.sum(losses, axis=0) / n, jnp.max(doubt, axis=0), jnp.ones_like(alphas))
