"""One layer's eigendecomposition, and what follows from it for any ridge penalty in closed form.

Two forms of the same mathematics (Hastie, Tibshirani & Friedman 2009, sections 3.4.1, 7.10, 18.3.5): from x'x [D, D],
and with D >= N - 1 from x x' [N, N] ("sample space"). y comes standardised, in float64; x with any mean.
Everything here is a pure function of one layer, to be traced under ``jax.enable_x64``.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxprobe.probes.moments import Centred, assemble, centre, moments_of, product, shifted, strips, sum_over_rows

SMALL = 2**15  # elements of x


class Factors(NamedTuple):
    """x'x or x x' = vectors diag(values) vectors' of one layer, in float64."""

    values: Array  # [K] eigenvalues
    vectors: Array  # [D, K] of x'x, or [N, K] of x x'
    rotated: Array  # [K, C] vectors' x'y, or vectors' y
    x_mean: Array  # [D]
    diagonal: Array  # [D] or [N], of the matrix decomposed
    scale: Array  # [] the layer's scale: median sum of squares of a dimension
    finite: Array  # [] bool


def in_sample_space(n: int, d: int) -> bool:
    """Whether N rows of D dimensions are solved from x x': from x'x, 1 - h would cancel as alpha goes to 0."""
    return d >= n - 1


def product_dtype(n: int, d: int, dtype: str) -> str:
    """The dtype of products with x, where ``dtype`` is asked for.

    With few rows leverages come near 1, and x x' mixes dimensions of very different scale: float32 has not enough
    digits for either. The eigendecomposition outweighs the products there, or all is small, so float64 costs little.
    """
    return "float64" if n < 2 * d or n * d < SMALL else dtype


def factor(
    x: Float[Array, "N D"], y: Float[Array, "N C"], inside: Bool[Array, " N"] | None = None, *, dtype: str
) -> Factors:
    """Eigendecomposition of one layer, by whichever of x'x and x x' is the better form.

    Rows outside ``inside`` do not count; only x'x, with rows enough inside, can leave some out.
    """
    if not in_sample_space(*x.shape):
        return factor_moments(centre(moments_of(x, y, product_dtype(*x.shape, dtype), inside=inside)))
    x_mean, centred, kernel = centred_kernel(x)
    values, vectors, finite = _eigh(kernel)
    scale = layer_scale(jnp.sum(centred**2, axis=0))
    return Factors(values, vectors, product(vectors.T, y), x_mean, jnp.diagonal(kernel), scale, finite)


def factor_moments(m: Centred) -> Factors:
    """Eigendecomposition of x'x, from moments alone."""
    values, vectors, finite = _eigh(m.gram)
    diagonal = jnp.diagonal(m.gram)
    return Factors(values, vectors, product(vectors.T, m.cross), m.x_mean, diagonal, layer_scale(diagonal), finite)


def centred_kernel(x: Float[Array, "N D"]) -> tuple[Array, Array, Array]:
    """(x_mean [D], centred x [N, D], kernel [N, N]) in float64.

    The constant vector, whose eigenvalue in x x' is 0, gets the mean eigenvalue instead: 1 - h then loses no digits
    when alpha is small (``constant_share`` is what that adds).
    """
    x = x.astype(jnp.float64)
    x_mean = jnp.mean(x, axis=0)
    centred = x - x_mean[None]
    kernel = assemble(strips(centred.T))
    kernel = kernel - kernel.mean(0)[None, :] - kernel.mean(1)[:, None] + kernel.mean()
    return x_mean, centred, kernel + jnp.trace(kernel) / len(x) ** 2


def constant_share(kernel_diagonal: Float[Array, " N"], alphas: Float[Array, " A"]) -> Float[Array, " A"]:
    """alpha / (alpha + mean eigenvalue) / N: the constant vector's part of alpha (x x' + alpha I)^-1, at every i, j."""
    n = len(kernel_diagonal)
    # The trace with the constant's eigenvalue t added is trace + t, where t = trace / N.
    mean_eigenvalue = jnp.sum(kernel_diagonal) / (n + 1)
    return alphas / (mean_eigenvalue + alphas) / n


def residuals(
    f: Factors,
    x: Float[Array, "N D"],
    y: Float[Array, "N C"],
    alphas: Float[Array, " A"],
    *,
    n: int,
    dtype: str,
    count: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "N A C"], Float[Array, "N A"]]:
    """Residuals y - ŷ and 1 - h, for every penalty; x and y may be some of the n rows of a fit by x'x.

    ``count`` is the number of rows that counted in it, where that is not n.
    """
    if in_sample_space(n, x.shape[1]):
        keep = alphas[None, :] / (f.values[:, None] + alphas[None, :])
        others = product(f.vectors**2, keep) - constant_share(f.diagonal, alphas)[None, :]
        return jnp.einsum("nk,ka,kc->nac", f.vectors, keep, f.rotated), others
    dtype = product_dtype(n, x.shape[1], dtype)
    shrink = 1 / (f.values[:, None] + alphas[None, :])
    coef = (f.rotated[:, None, :] * shrink[:, :, None]).reshape(len(shrink), -1).astype(dtype)
    z = centred_product(x, f.x_mean, f.vectors, dtype)
    residual = y.astype(dtype)[:, None] - product(z, coef).reshape(len(x), len(alphas), -1)
    share = 1 / n if count is None else (1 / count).astype(dtype)
    return residual, 1 - share - product(z * z, shrink.astype(dtype))


def leave_one_out(
    f: Factors,
    x: Float[Array, "N D"],
    y: Float[Array, "N C"],
    alphas: Float[Array, " A"],
    inside: Bool[Array, " N"] | None = None,
    *,
    dtype: str,
) -> tuple[Float[Array, "A C"], Float[Array, ""]]:
    """(exact leave-one-out mean squared errors for every penalty, in units of the variance of y; the least 1 - h).

    Where the least 1 - h is near 0, its rounding is all that is left of it, see ``search.LEAST_OTHERS``. ``inside`` as
    in ``factor``.
    """
    n = len(x)
    count = None if inside is None else jnp.sum(inside).astype(jnp.float64)

    def block(start, size):
        cut = lambda rows: lax.dynamic_slice_in_dim(rows, start, size)
        residual, others = residuals(f, cut(x), cut(y), alphas, n=n, dtype=dtype, count=count)
        squares = (residual / others[:, :, None]) ** 2
        if inside is not None:
            squares = jnp.where(cut(inside)[:, None, None], squares, 0)
            others = jnp.where(cut(inside)[:, None], others, 1)
        # 1 less h, as what sum_over_rows starts from is 0.
        return jnp.sum(squares, axis=0).astype(jnp.float64), jnp.max(1 - others).astype(jnp.float64)

    if in_sample_space(*x.shape):
        total, most = block(0, n)
    else:
        total, most = sum_over_rows(block, n, lambda a, b: (a[0] + b[0], jnp.maximum(a[1], b[1])))
    return total / (n if count is None else count), 1 - most


def centred_product(x: Float[Array, "N D"], x_mean: Float[Array, " D"], matrix: Float[Array, "D K"], dtype: str):
    """[N, K] (x - x_mean) matrix."""
    matrix, mean = matrix.astype(dtype), x_mean.astype(dtype)
    # The mean rounded to dtype goes first, while large values still cancel exactly; the rest of it after the product.
    rest = product((x_mean - mean.astype(jnp.float64)).astype(dtype), matrix)
    return product(shifted(x, mean, dtype), matrix) - rest[None]


def generalised(
    f: Factors, y_squares: Float[Array, " C"], n: Float[Array, ""], alphas: Float[Array, " A"], *, sample_space: bool
) -> Float[Array, "A C"]:
    """Generalised cross-validation (Golub, Heath & Wahba 1979): leave-one-out with every h at its mean over n rows."""
    keep = alphas[None, :] / (f.values[:, None] + alphas[None, :])
    if sample_space:
        residual_squares = product((keep**2).T, f.rotated**2)
        others = jnp.sum(keep, axis=0) - n * constant_share(f.diagonal, alphas)  # the trace of 1 - H
    else:
        explained = (f.values[:, None] + 2 * alphas[None, :]) / (f.values[:, None] + alphas[None, :]) ** 2
        residual_squares = y_squares[None, :] - product(explained.T, f.rotated**2)
        others = n - 1 - f.values.shape[0] + jnp.sum(keep, axis=0)
    return n * residual_squares / others[:, None] ** 2


def weights_at(f: Factors, x: Float[Array, "N D"], alpha: Float[Array, " C"]) -> Float[Array, "D C"]:
    """Weights at one penalty a target."""
    weights = feature_weights(f, alpha)
    return product((x.astype(jnp.float64) - f.x_mean[None]).T, weights) if in_sample_space(*x.shape) else weights


def feature_weights(f: Factors, alpha: Float[Array, " C"]) -> Float[Array, "K C"]:
    """Weights at one penalty a target of the dimensions of x'x (of the rows, with factors of x x')."""
    return product(f.vectors, f.rotated / (f.values[:, None] + alpha[None, :]))


def condition_at(f: Factors, alpha: Float[Array, ""]) -> Float[Array, ""]:
    """Largest variance inflation factor max_d G_dd [(G + alpha I)^-1]_dd; NaN where x was not finite.

    Rounding changes G_ij by about epsilon sqrt(G_ii G_jj), which a few huge dimensions do not make worse for the
    others, so this and not the ratio of eigenvalues tells how much of it reaches the fit (Demmel & Veselic 1992).
    """
    inverse = jnp.sum(f.vectors**2 / (f.values + alpha)[None, :], axis=1)
    return jnp.where(f.finite, jnp.max(f.diagonal * inverse), jnp.nan)


def layer_scale(squares: Float[Array, " D"]) -> Float[Array, ""]:
    """Median sum of squares of the dimensions that vary: a scale that few huge dimensions don't move."""
    return jnp.nan_to_num(jnp.nanmedian(jnp.where(squares > 0, squares, jnp.nan)), nan=1.0)


def _eigh(matrix):
    """Eigenvalues (not below 0), vectors, and whether all was finite: LAPACK may not come back from a NaN."""
    finite = jnp.isfinite(matrix).all()
    values, vectors = jnp.linalg.eigh(jnp.where(finite, matrix, jnp.eye(len(matrix))))
    return jnp.maximum(values, 0), vectors, finite
