"""First and second moments of rows: all of the data that k-fold, generalised cross-validation and weights need."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

ROWS = 2048  # rows a block: the centred block stays in cache between its making and its product (measured on CPU)


class Moments(NamedTuple):
    """Sums over rows, taken about a pilot mean so that large means cancel before they are squared.

    Moments about the same shift add and subtract: folds, groups, streamed batches. Leading axes (layer, fold) go first.

    Attributes:
      count: [] number of rows.
      x_shift: [D] the pilot mean of x: any value within a few standard deviations of the mean.
      y_shift: [C] the same for y.
      x_sum: [D] sum of (x - x_shift).
      y_sum: [C] sum of (y - y_shift).
      xx: [D, D] sum of (x - x_shift)'(x - x_shift).
      xy: [D, C] sum of (x - x_shift)'(y - y_shift).
      yy: [C] sum of (y - y_shift)^2.
    """

    count: Array
    x_shift: Array
    y_shift: Array
    x_sum: Array
    y_sum: Array
    xx: Array
    xy: Array
    yy: Array


class Centred(NamedTuple):
    """The same about the exact means, in float64."""

    count: Array  # []
    x_mean: Array  # [D]
    y_mean: Array  # [C]
    gram: Array  # [D, D]
    cross: Array  # [D, C]
    y_squares: Array  # [C]


def sum_over_rows(block: Callable, rows: int):
    """Sum of ``block(start, size)``, arrays or tuples of them, over blocks of at most ROWS rows; ``size`` is static."""
    whole, rest = divmod(rows, ROWS)
    if not whole:
        return block(0, rest)
    zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
    total = block(whole * ROWS, rest) if rest else jax.tree.map(zeros, jax.eval_shape(lambda: block(0, ROWS)))
    return lax.fori_loop(0, whole, lambda i, total: jax.tree.map(jnp.add, total, block(i * ROWS, ROWS)), total)


def moments_of(x: Float[Array, "N D"], y: Float[Array, "N C"], dtype: str) -> Moments:
    """Moments of rows in memory: products in ``dtype``, blocks added in float64 (under ``jax.enable_x64``)."""
    n = x.shape[0]
    # A sample's mean is near enough: what it is off by is taken out exactly by centre().
    x_shift = jnp.mean(x[:: max(n // ROWS, 1)].astype(jnp.float64), axis=0).astype(dtype)
    y_shift = jnp.zeros(y.shape[1], dtype)  # the caller's y has mean 0

    def block(start, size):
        xb = lax.dynamic_slice_in_dim(x, start, size).astype(dtype) - x_shift[None]
        yb = lax.dynamic_slice_in_dim(y, start, size).astype(dtype)
        product = lambda a, b: jnp.matmul(a.T, b, precision="highest")
        sums = (jnp.sum(xb, 0), jnp.sum(yb, 0), product(xb, xb), product(xb, yb), jnp.sum(yb * yb, 0))
        return tuple(s.astype(jnp.float64) for s in sums)

    return Moments(jnp.asarray(n, jnp.float64), x_shift, y_shift, *sum_over_rows(block, n))


def centre(m: Moments) -> Centred:
    """Moments about the exact means (under ``jax.enable_x64``)."""
    m = Moments(*(leaf.astype(jnp.float64) for leaf in m))
    x_off, y_off = m.x_sum / m.count, m.y_sum / m.count
    gram = m.xx - jnp.outer(m.x_sum, x_off)
    cross = m.xy - jnp.outer(m.x_sum, y_off)
    return Centred(m.count, m.x_shift + x_off, m.y_shift + y_off, gram, cross, m.yy - m.y_sum * y_off)
