"""First and second moments of rows: all of the data that k-fold, generalised cross-validation and weights need."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

product = partial(jnp.matmul, precision="highest")  # TPU and TF32 defaults keep 8 to 10 bits
STRIPS = 4
ROWS = 2048  # rows a block: the centred block stays in cache between its making and its product (measured on CPU)


ROTATED = 64  # of a state's dimensions; models have some ten massive ones
TAKEN_OUT = 8  # axes by which the others are cleaned before they are rotated
PILOT_ROWS = 4096


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


def add_leaves(a, b):
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def sum_over_rows(block: Callable, rows: int, join: Callable = add_leaves):
    """Sum of ``block(start, size)``, arrays or tuples of them, over blocks of at most ROWS rows; ``size`` is static.

    ``join`` puts two results together, of which the first may be zeros.
    """
    whole, rest = divmod(rows, ROWS)
    if not whole:
        return block(0, rest)
    zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
    total = block(whole * ROWS, rest) if rest else jax.tree.map(zeros, jax.eval_shape(lambda: block(0, ROWS)))
    return lax.fori_loop(0, whole, lambda i, total: join(total, block(i * ROWS, ROWS)), total)


def shifted(x: Float[Array, "N D"], shift: Float[Array, " D"], dtype: str) -> Float[Array, "N D"]:
    """x - shift in ``dtype``, subtracted in x's own dtype where that is wider: large values cancel before rounding."""
    wide = x.dtype if x.dtype == jnp.float64 else dtype
    return (x.astype(wide) - shift.astype(wide)[None]).astype(dtype)


def strips(rows: Float[Array, "N D"]) -> tuple[Array, ...]:
    """The blocks of rows'rows on and above its diagonal, in four strips: 5/8 of the work, as the rest mirrors them."""
    d = rows.shape[1]
    edges = [i * d // STRIPS for i in range(STRIPS + 1)] if d >= 256 else [0, d]  # small ones gain nothing
    return tuple(product(rows[:, a:b].T, rows[:, a:]) for a, b in pairwise(edges))


def assemble(parts: tuple[Array, ...]) -> Float[Array, "D D"]:
    """The symmetric matrix of which ``strips`` gave a part."""
    d = parts[0].shape[1]
    upper = jnp.concatenate([jnp.pad(part, ((0, 0), (d - part.shape[1], 0))) for part in parts])
    return jnp.triu(upper) + jnp.triu(upper, 1).T


def largest_block(rows: Float[Array, "N D"], most: int = ROTATED) -> tuple[Array, Array]:
    """(the k dimensions with the largest sums of squares, their products [k, k]) of rows about a mean; k <= ``most``.

    Where massive dimensions move together, their products have no digits left for what they differ by, and every
    float32 factorisation fails; along their principal axes they have.
    """
    _, top = lax.top_k(jnp.sum(rows * rows, axis=0), min(most, rows.shape[1]))
    part = rows[:PILOT_ROWS, top]
    return top, product(part.T, part)


def principal_axes(blocks: np.ndarray) -> np.ndarray:
    """[..., k, k] orthogonal columns: eigenvectors of ``largest_block``'s products, in their dtype; on the host."""
    usable = np.where(np.isfinite(blocks).all(axis=(-2, -1), keepdims=True), blocks, np.eye(blocks.shape[-1]))
    return np.linalg.eigh(usable.astype(np.float64))[1].astype(blocks.dtype)


def rotate(
    x: Float[Array, "N D"], mean: Float[Array, " D"], top: Int[Array, " k"], axes: Float[Array, "k k"]
) -> Float[Array, "N D"]:
    """x - mean with its dimensions ``top`` along ``axes`` (last the largest) in place of their own.

    What is large in them must not leave its rounding in what is small: the difference keeps its own, and the largest
    axes are taken out one after another, exactly. `rotation` has what this comes to.
    """
    rows, whole, of_mean = x - mean[None], x[:, top], mean[top][None]
    part, along = rows[:, top], []
    back = part - whole
    rounding = (whole - (part - back)) - (of_mean + back)
    first = max(len(axes) - TAKEN_OUT, 0)
    for i in reversed(range(first, len(axes))):
        along.append(product(part, axes[:, i : i + 1]))
        part = _less_product(part, along[-1], axes[None, :, i])
    rotated = jnp.concatenate([product(part, axes[:, :first]), *along[::-1]], axis=1)
    return rows.at[:, top].set(rotated + product(rounding, axes))


def rotation(axes: np.ndarray) -> np.ndarray:
    """[..., k, k] in float64, orthogonal as ``axes`` are: ``rotate`` makes ``(x - mean)[:, top] @ rotation(axes)``."""
    axes = axes.astype(np.float64)
    taken = np.broadcast_to(np.eye(axes.shape[-1]), axes.shape)
    result = axes.copy()
    first = max(axes.shape[-1] - TAKEN_OUT, 0)
    for i in reversed(range(first, axes.shape[-1])):
        axis = axes[..., i : i + 1]
        result[..., i : i + 1] = taken @ axis
        taken = taken - (taken @ axis) @ np.swapaxes(axis, -1, -2)
    result[..., :first] = taken @ axes[..., :first]
    return result


def _less_product(a, b, c):
    """a - b c with the product's rounding taken along (Dekker 1971); a is near b c where it is large."""
    if a.dtype == jnp.float64:
        return a - b * c

    def split(value):
        large = 4097 * value  # 2^12 + 1: halves of twelve bits, whose products are exact
        high = large - (large - value)
        return high, value - high

    whole, (b_high, b_low), (c_high, c_low) = b * c, split(b), split(c)
    error = ((b_high * c_high - whole) + b_high * c_low + b_low * c_high) + b_low * c_low
    return (a - whole) - error


def rotate_moments(m: Moments) -> tuple[Moments, np.ndarray, np.ndarray, float]:
    """(moments along the principal axes of their largest dimensions, top, axes, scale), in NumPy; leading axis [J].

    The scale is that of the penalties, the median sum of squares of the dimensions that vary, before the rotation.
    Weights come back as ``weights[top] = axes @ weights[top]``, means alike. Sums in float64 lose nothing by it.
    """
    m = Moments(*(np.asarray(leaf, np.float64) for leaf in m))
    x_sum = m.x_sum.sum(0)
    squares = np.diagonal(m.xx, axis1=1, axis2=2).sum(0) - x_sum**2 / m.count.sum()
    top = np.argsort(-squares, kind="stable")[:ROTATED]
    block = m.xx[:, top[:, None], top].sum(0) - np.outer(x_sum[top], x_sum[top]) / m.count.sum()
    axes = principal_axes(block)
    x_shift, x_sum, xx, xy = (leaf.copy() for leaf in (m.x_shift, m.x_sum, m.xx, m.xy))
    x_shift[:, top], x_sum[:, top] = x_shift[:, top] @ axes, x_sum[:, top] @ axes
    xx[:, top] = axes.T @ xx[:, top]
    xx[:, :, top] = xx[:, :, top] @ axes
    xy[:, top] = axes.T @ xy[:, top]
    scale = np.median(squares[squares > 0]) if (squares > 0).any() else 1.0
    return m._replace(x_shift=x_shift, x_sum=x_sum, xx=xx, xy=xy), top, axes, scale


def pilot_mean(x: Float[Array, "N D"], dtype: str) -> Float[Array, " D"]:
    """The mean of at most about 2 ROWS rows spread over x: near enough, as what it is off by is taken out exactly."""
    return jnp.mean(x[:: max(len(x) // ROWS, 1)].astype(jnp.float64), axis=0).astype(dtype)


def moments_of(
    x: Float[Array, "N D"],
    y: Float[Array, "N C"],
    dtype: str,
    x_shift: Float[Array, " D"] | None = None,
    inside: Bool[Array, " N"] | None = None,
) -> Moments:
    """Moments of rows in memory: products in ``dtype``, blocks added in float64 (under ``jax.enable_x64``).

    y has means near 0; ``x_shift`` is the pilot mean of x unless given; rows outside ``inside`` do not count.
    """
    x_shift = pilot_mean(x, dtype) if x_shift is None else x_shift
    y_shift = jnp.zeros(y.shape[1], dtype)

    def block(start, size):
        cut = lambda rows: lax.dynamic_slice_in_dim(rows, start, size)
        xb, yb = shifted(cut(x), x_shift, dtype), cut(y).astype(dtype)
        if inside is not None:
            xb, yb = (jnp.where(cut(inside)[:, None], rows, 0) for rows in (xb, yb))
        sums = jnp.sum(xb, 0), jnp.sum(yb, 0), strips(xb), product(xb.T, yb), jnp.sum(yb * yb, 0)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), sums)

    count = len(x) if inside is None else jnp.sum(inside)
    x_sum, y_sum, xx, xy, yy = sum_over_rows(block, len(x))
    return Moments(jnp.asarray(count, jnp.float64), x_shift, y_shift, x_sum, y_sum, assemble(xx), xy, yy)


def add(a: Moments, b: Moments) -> Moments:
    """Moments of the rows of both, which were taken about the same shift."""
    return combine(jnp.add, a, b)


def combine(operation: Callable, *moments: Moments) -> Moments:
    """Sums or differences of the sums of moments about the same shift, which stays."""
    count, _, _, *sums = map(operation, *moments)
    return Moments(count, moments[0].x_shift, moments[0].y_shift, *sums)


def centre(m: Moments) -> Centred:
    """Moments about the exact means (under ``jax.enable_x64``)."""
    m = Moments(*(leaf.astype(jnp.float64) for leaf in m))
    x_off, y_off = m.x_sum / m.count, m.y_sum / m.count
    gram = m.xx - jnp.outer(m.x_sum, x_off)
    cross = m.xy - jnp.outer(m.x_sum, y_off)
    return Centred(m.count, m.x_shift + x_off, m.y_shift + y_off, gram, cross, m.yy - m.y_sum * y_off)
