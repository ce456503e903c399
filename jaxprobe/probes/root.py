"""The inverse Cholesky factor of a matrix: what every float32 fit is made of.

LAPACK's and cuSOLVER's factorisation where there is one. XLA's own for TPUs is unrolled, and compiles for minutes at
width 2,048; ``blocked`` is one loop of matrix products over block rows instead, whose program has one size for every
width, and takes 2 D^3 operations and D steps of one column each.
"""

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from jaxprobe.probes.moments import product

BLOCK = 256  # rows that are factored column by column
PANEL = 512  # columns of a product; a loop over as many as there are leaves out what is 0


def inverse_root(matrix: Float[Array, "D D"], *, blocked: bool) -> Float[Array, "D D"]:
    """R lower triangular with R matrix R' = I; NaN where float32 finds the matrix not positive definite.

    ``matrix`` is symmetric. Error: |R matrix R' - I| is about D times the rounding error times the condition of the
    matrix scaled to unit diagonal (Demmel 1989): scale does no harm, unlike to an eigendecomposition.
    """
    if blocked:
        return _blocked(matrix)
    lower = lax.linalg.cholesky(matrix, symmetrize_input=False)
    return solve_triangular(lower, jnp.eye(len(matrix), dtype=matrix.dtype), lower=True)


def _blocked(matrix):
    d = len(matrix)
    if d <= BLOCK:
        return _by_columns(matrix)
    size = -(-d // PANEL) * PANEL
    filled = jnp.pad(matrix, ((0, size - d),) * 2) + jnp.diag((jnp.arange(size) >= d).astype(matrix.dtype))

    def block_row(i, inverse):
        start = i * BLOCK
        own = lax.dynamic_slice_in_dim(filled, start, BLOCK)
        panels = (start + PANEL - 1) // PANEL

        def left(p, row):  # L_i = A_i R', of the columns before
            part = lax.dynamic_slice_in_dim(own, p * PANEL, PANEL, axis=1)
            part = jnp.where((p * PANEL + jnp.arange(PANEL) < start)[None], part, 0)
            return row + product(part, lax.dynamic_slice_in_dim(inverse, p * PANEL, PANEL, axis=1).T)

        row = lax.fori_loop(0, panels, left, jnp.zeros_like(own))
        corner = _by_columns(lax.dynamic_slice_in_dim(own, start, BLOCK, axis=1) - product(row, row.T))

        def right(p, new):  # R_i = -corner L_i R
            part = lax.dynamic_slice_in_dim(row, p * PANEL, PANEL, axis=1)
            return new + product(part, lax.dynamic_slice_in_dim(inverse, p * PANEL, PANEL))

        new = -product(corner, lax.fori_loop(0, panels, right, jnp.zeros_like(own)))
        new = lax.dynamic_update_slice_in_dim(new, corner, start, axis=1)
        return lax.dynamic_update_slice_in_dim(inverse, new, start, axis=0)

    return lax.fori_loop(0, size // BLOCK, block_row, jnp.zeros_like(filled))[:d, :d]


def _by_columns(matrix):
    """The same of a small matrix: Gauss elimination of [matrix | I], a column a step, rows scaled at the end."""
    below = jnp.arange(len(matrix))[:, None]

    def column(j, both):
        rest, done = both
        pivot, of_done = (lax.dynamic_slice_in_dim(part, j, 1) for part in both)
        factor = lax.dynamic_slice_in_dim(rest, j, 1, axis=1) / lax.dynamic_slice_in_dim(pivot, j, 1, axis=1)
        factor = jnp.where(below > j, factor, 0)
        return rest - factor * pivot, done - factor * of_done

    rest, done = lax.fori_loop(0, len(matrix), column, (matrix, jnp.eye(len(matrix), dtype=matrix.dtype)))
    return done * lax.rsqrt(jnp.diagonal(rest))[:, None]
