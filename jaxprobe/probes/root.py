"""Triangular factors of a matrix: what every float32 fit is made of.

LAPACK's and cuSOLVER's factorisation where there is one. XLA's own for TPUs is unrolled, and compiles for minutes at
width 2,048; ``blocked`` is one loop over block columns instead, whose program has one size for every width: D^3 / 3
operations, nearly all of them products, and D steps of one column each.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from jaxprobe.probes.moments import product

BLOCK = 256  # columns that are factored one by one
PANEL = 512  # rows of a product


class Factor(NamedTuple):
    """L of a matrix L L'; NaN where float32 finds that not positive definite."""

    lower: Array  # [D, D]; what is above the diagonal means nothing
    corners: Array | None  # [D / BLOCK, BLOCK, BLOCK] inverses of L's diagonal blocks; None: by a triangular solver


def factor(
    matrix: Float[Array, "D D"], below: Float[Array, "M D"] | None = None, *, blocked: bool
) -> tuple[Factor, Float[Array, "M D"] | None]:
    """(the factor of a symmetric matrix, ``below`` L'^-1).

    Error: |L^-1 matrix L'^-1 - I| is about D times the rounding error times the condition of the matrix scaled to unit
    diagonal (Demmel 1989): scale does no harm, unlike to an eigendecomposition.
    """
    if blocked:
        return _eliminate(matrix, below)
    lower = lax.linalg.cholesky(matrix, symmetrize_input=False)
    solve = lambda rows: lax.linalg.triangular_solve(lower, rows, lower=True, transpose_a=True)
    return Factor(lower, None), None if below is None else solve(below)


def inverse_root(matrix: Float[Array, "D D"], *, blocked: bool) -> Float[Array, "D D"]:
    """L'^-1 of `factor`: U upper triangular with U U' the inverse of the matrix."""
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    if not blocked:
        return solve_upper(factor(matrix, blocked=False)[0], identity)
    return _by_columns(matrix).T if len(matrix) <= BLOCK else _eliminate(matrix, identity, triangular=True)[1]


def solve_lower(f: Factor, b: Float[Array, "D C"]) -> Float[Array, "D C"]:
    """L^-1 b."""
    if f.corners is None:
        return solve_triangular(f.lower, b, lower=True)
    size = f.corners.shape[1]

    def block_row(i, x):
        rest = lax.dynamic_slice_in_dim(x, i * size, size) - product(_before(f.lower, i, size), x)
        return lax.dynamic_update_slice_in_dim(x, product(f.corners[i], rest), i * size, axis=0)

    return lax.fori_loop(0, len(f.corners), block_row, _filled(b, len(f.lower)))[: len(b)]


def solve_upper(f: Factor, b: Float[Array, "D C"]) -> Float[Array, "D C"]:
    """L'^-1 b."""
    if f.corners is None:
        return solve_triangular(f.lower, b, lower=True, trans=1)
    count, size = f.corners.shape[:2]

    def block_row(turn, x):
        i = count - 1 - turn
        solved = product(f.corners[i].T, lax.dynamic_slice_in_dim(x, i * size, size))
        x = x - product(_before(f.lower, i, size).T, solved)
        return lax.dynamic_update_slice_in_dim(x, solved, i * size, axis=0)

    return lax.fori_loop(0, count, block_row, _filled(b, len(f.lower)))[: len(b)]


def _before(lower, i, size):
    """Block row i of L up to its diagonal block."""
    own = lax.dynamic_slice_in_dim(lower, i * size, size)
    return jnp.where((jnp.arange(len(lower)) < i * size)[None], own, 0)


def _filled(b, rows):
    return jnp.pad(b, ((0, rows - len(b)), (0, 0)))


def _eliminate(matrix, below, *, triangular=False):
    """`factor` by block columns, in place; ``triangular`` below is 0 under its diagonal."""
    d, more = len(matrix), 0 if below is None else len(below)
    if d <= BLOCK:
        corner = _by_columns(matrix)
        return Factor(matrix, corner[None]), None if below is None else product(below, corner.T)
    side = -(-d // BLOCK) * BLOCK
    whole = jnp.pad(matrix, ((0, side - d),) * 2)
    if side > d:
        whole = whole + jnp.diag((jnp.arange(side) >= d).astype(matrix.dtype))
    if below is not None:
        whole = jnp.concatenate([whole, jnp.pad(below, ((0, 0), (0, side - d)))])
    whole = _filled(whole, -(-(side + more) // PANEL) * PANEL)

    def block_column(i, state):
        whole, corners = state
        start = i * BLOCK
        own = lax.dynamic_slice(whole, (start, 0), (BLOCK, side))

        def rest(whole, first, rows):  # of the column, without what the columns before have of it
            def less(k, part):
                of_rows = lax.dynamic_slice(whole, (first, k * BLOCK), (rows, BLOCK))
                return part - product(of_rows, lax.dynamic_slice_in_dim(own, k * BLOCK, BLOCK, axis=1).T)

            return lax.fori_loop(0, i, less, lax.dynamic_slice(whole, (first, start), (rows, BLOCK)))

        corner = _by_columns(rest(whole, start, BLOCK))

        def panel(r, whole):
            found = product(rest(whole, r * PANEL, PANEL), corner.T)
            return lax.dynamic_update_slice(whole, found, (r * PANEL, start))

        end = -(-(side + start + BLOCK) // PANEL) if triangular else len(whole) // PANEL
        whole = lax.fori_loop(start // PANEL, end, panel, whole)
        return whole, lax.dynamic_update_slice_in_dim(corners, corner[None], i, axis=0)

    corners = jnp.zeros((side // BLOCK, BLOCK, BLOCK), matrix.dtype)
    whole, corners = lax.fori_loop(0, len(corners), block_column, (whole, corners))
    return Factor(whole[:side], corners), None if below is None else whole[side : side + more, :d]


def _by_columns(matrix):
    """L^-1 of a small matrix: Gauss elimination of [matrix | I], a column a step, rows scaled at the end."""
    below = jnp.arange(len(matrix))[:, None]

    def column(j, both):
        rest, done = both
        pivot, of_done = (lax.dynamic_slice_in_dim(part, j, 1) for part in both)
        times = lax.dynamic_slice_in_dim(rest, j, 1, axis=1) / lax.dynamic_slice_in_dim(pivot, j, 1, axis=1)
        times = jnp.where(below > j, times, 0)
        return rest - times * pivot, done - times * of_done

    rest, done = lax.fori_loop(0, len(matrix), column, (matrix, jnp.eye(len(matrix), dtype=matrix.dtype)))
    return done * lax.rsqrt(jnp.diagonal(rest))[:, None]
