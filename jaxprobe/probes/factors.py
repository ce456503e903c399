"""One layer's eigendecomposition, and what follows from it for any ridge penalty in closed form.

Two forms of the same mathematics (Hastie, Tibshirani & Friedman 2009, sections 3.4.1, 7.10, 18.3.5): from x'x [D, D], and
with D >= N - 1 from x x' [N, N] ("sample space"). x and y have their means taken out; y comes standardised, in float64.
Everything here is a pure function of one layer, to be traced under ``jax.enable_x64``.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxprobe.probes.moments import centre, moments_of, sum_over_rows


class Factors(NamedTuple):
    """x'x or x x' = vectors diag(values) vectors' of one layer, in float64."""

    values: Array  # [K] eigenvalues
    vectors: Array  # [D, K] of x'x, or [N, K] of x x'
    rotated: Array  # [K, C] vectors' x'y, or vectors' y
    x_mean: Array  # [D]
    squares: Array  # [D] or [N], the diagonal of the matrix decomposed
    scale: Array  # [] see _scale
    finite: Array  # [] bool


def in_sample_space(n: int, d: int) -> bool:
    """Whether N rows of D dimensions are solved from x x': from x'x, 1 - h would cancel as alpha goes to 0."""
    return d >= n - 1


def product_dtype(n: int, d: int, dtype: str) -> str:
    """The dtype of products with x, where ``dtype`` is asked for.

    With few rows leverages come near 1, and x x' mixes dimensions of very different scale: float32 has not enough
    digits for either. The eigendecomposition outweighs the products there, so float64 costs little.
    """
    return "float64" if n < 2 * d else dtype


def factor(x: Float[Array, "N D"], y: Float[Array, "N C"], dtype: str) -> Factors:
    """Eigendecomposition of one layer, by whichever of x'x and x x' is the better form."""
    n, d = x.shape
    return (_of_samples if in_sample_space(n, d) else _of_features)(x, y, product_dtype(n, d, dtype))


def leave_one_out(
    f: Factors, x: Float[Array, "N D"], y: Float[Array, "N C"], alphas: Float[Array, "A"], dtype: str
) -> Float[Array, "A C"]:
    """Exact leave-one-out mean squared errors for every penalty, in units of the variance of y."""
    if in_sample_space(*x.shape):
        return _loo_samples(f, y, alphas)
    return _loo_features(f, x, y, alphas, product_dtype(*x.shape, dtype))


def weights_at(f: Factors, x: Float[Array, "N D"], alpha: Float[Array, "C"]) -> Float[Array, "D C"]:
    """Weights at one penalty a target."""
    weights = f.vectors @ (f.rotated / (f.values[:, None] + alpha[None, :]))
    if not in_sample_space(*x.shape):
        return weights
    return jnp.matmul((x.astype(jnp.float64) - f.x_mean[None]).T, weights, precision="highest")


def condition_at(f: Factors, alpha: Float[Array, ""]) -> Float[Array, ""]:
    """Largest variance inflation factor max_d G_dd [(G + alpha I)^-1]_dd; NaN where x was not finite.

    Rounding changes G_ij by about epsilon sqrt(G_ii G_jj), which a few huge dimensions do not make worse for the
    others, so this and not the ratio of eigenvalues tells how much of it reaches the fit (Demmel & Veselic 1992).
    """
    inverse = jnp.sum(f.vectors**2 / (f.values + alpha)[None, :], axis=1)
    return jnp.where(f.finite, jnp.max(f.squares * inverse), jnp.nan)


def _scale(squares: Float[Array, "D"]):
    """The layer's scale: the median sum of squares of a dimension that varies, so that few huge ones don't count."""
    return jnp.nan_to_num(jnp.nanmedian(jnp.where(squares > 0, squares, jnp.nan)), nan=1.0)


def _eigh(matrix):
    """Eigenvalues (not below 0) and vectors in float64; a matrix with NaN is replaced, as LAPACK may not come back."""
    finite = jnp.isfinite(matrix).all()
    values, vectors = jnp.linalg.eigh(jnp.where(finite, matrix, jnp.eye(len(matrix))))
    return jnp.maximum(values, 0), vectors, finite


def _of_features(x, y, dtype) -> Factors:
    x_mean, _, gram, cross, _ = centre(moments_of(x, y, dtype))
    values, vectors, finite = _eigh(gram)
    squares = jnp.diagonal(gram)
    return Factors(values, vectors, vectors.T @ cross, x_mean, squares, _scale(squares), finite)


def _loo_features(f: Factors, x, y, alphas: Float[Array, "A"], dtype: str) -> Float[Array, "A C"]:
    """Leave-one-out mean squared errors from x'x, by blocks of rows."""
    n, c = y.shape
    y = y.astype(dtype)
    shrink = 1 / (f.values[:, None] + alphas[None, :])
    coef = (f.rotated[:, None, :] * shrink[:, :, None]).reshape(len(shrink), -1).astype(dtype)
    vectors, shrink, mean = f.vectors.astype(dtype), shrink.astype(dtype), f.x_mean.astype(dtype)
    # x is exact in dtype and the mean is not: what rounding took from it goes in after the product.
    offset = (f.x_mean - mean.astype(f.x_mean.dtype)).astype(dtype) @ vectors
    product = partial(jnp.matmul, precision="highest")

    def block(start, size):
        rows = lax.dynamic_slice_in_dim(x, start, size).astype(dtype) - mean[None]
        z = product(rows, vectors) - offset[None]
        residual = lax.dynamic_slice_in_dim(y, start, size)[:, None] - product(z, coef).reshape(size, -1, c)
        others = 1 - 1 / n - product(z * z, shrink)  # 1 - h
        return jnp.sum((residual / others[:, :, None]) ** 2, axis=0).astype(jnp.float64)

    return sum_over_rows(block, n) / n


def _of_samples(x, y, dtype) -> Factors:
    """x x' centred on both sides, plus a constant times the constant vector, whose eigenvalue would be 0 otherwise."""
    n = len(x)
    x_mean = jnp.mean(x.astype(jnp.float64), axis=0)
    centred = (x.astype(jnp.float64) - x_mean[None]).astype(dtype)
    squares = jnp.sum(centred.astype(jnp.float64) ** 2, axis=0)
    kernel = jnp.matmul(centred, centred.T, precision="highest").astype(jnp.float64)
    kernel = kernel - kernel.mean(0)[None, :] - kernel.mean(1)[:, None] + kernel.mean()
    values, vectors, finite = _eigh(kernel + jnp.trace(kernel) / n**2)
    return Factors(values, vectors, vectors.T @ y, x_mean, jnp.diagonal(kernel), _scale(squares), finite)


def _loo_samples(f: Factors, y, alphas: Float[Array, "A"]) -> Float[Array, "A C"]:
    """Leave-one-out mean squared errors from x x': 1 - h = sum_k u_k^2 alpha / (e_k + alpha), less the constant's."""
    n = len(y)
    keep = alphas[None, :] / (f.values[:, None] + alphas[None, :])
    constant = alphas / (jnp.sum(f.squares) / n + alphas) / n
    others = f.vectors**2 @ keep - constant[None, :]
    residual = jnp.einsum("nk,ka,kc->nac", f.vectors, keep, f.rotated)
    return jnp.mean((residual / others[:, :, None]) ** 2, axis=0)
