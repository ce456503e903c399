"""The functions of factors.py by one Cholesky factorisation a penalty, with no eigendecomposition and no float64 one.

For TPUs, where eigendecompositions are slow and float64 is emulated. A float32 Cholesky factorisation is as good as the
equilibrated matrix allows (Demmel 1989): a few huge dimensions do it no harm, unlike a float32 eigendecomposition.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from jaxprobe.probes.eigen import (
    centred_kernel,
    centred_product,
    constant_share,
    in_sample_space,
    layer_scale,
    product_dtype,
)
from jaxprobe.probes.moments import centre, moments_of, product, sum_over_rows


class Normal(NamedTuple):
    """One layer's normal equations, in the dtype of products."""

    matrix: Array  # [K, K], x'x or x x'
    cross: Array  # [K, C], x'y or y
    x_mean: Array  # [D] float64
    scale: Array  # [] see Factors
    finite: Array  # [] bool


def factor(x: Float[Array, "N D"], y: Float[Array, "N C"], dtype: str) -> Normal:
    """The normal equations of one layer."""
    dtype = product_dtype(*x.shape, dtype)
    if in_sample_space(*x.shape):
        x_mean, centred, matrix = centred_kernel(x)
        cross, scale = y, layer_scale(jnp.sum(centred**2, axis=0))
    else:
        m = centre(moments_of(x, y, dtype))
        x_mean, matrix, cross, scale = m.x_mean, m.gram, m.cross, layer_scale(jnp.diagonal(m.gram))
    return Normal(matrix.astype(dtype), cross.astype(dtype), x_mean, scale, jnp.isfinite(matrix).all())


def leave_one_out(
    f: Normal, x: Float[Array, "N D"], y: Float[Array, "N C"], alphas: Float[Array, " A"], *, dtype: str
) -> Float[Array, "A C"]:
    """Exact leave-one-out mean squared errors for every penalty, in units of the variance of y."""
    n, d = x.shape
    dtype = product_dtype(n, d, dtype)

    def one_alpha(alpha):
        root = _inverse_root(f.matrix, alpha)
        weights = product(root.T, product(root, f.cross))
        if in_sample_space(n, d):
            others = alpha * jnp.sum(root**2, axis=0) - constant_share(jnp.diagonal(f.matrix), alpha[None])
            return jnp.mean((alpha * weights / others[:, None]) ** 2, axis=0), jnp.min(others)

        def block(start, size):
            rows = lax.dynamic_slice_in_dim(x, start, size)
            residual = lax.dynamic_slice_in_dim(y, start, size).astype(dtype)
            residual = residual - centred_product(rows, f.x_mean, weights, dtype)
            others = 1 - 1 / n - jnp.sum(centred_product(rows, f.x_mean, root.T, dtype) ** 2, axis=1)
            return jnp.sum((residual / others[:, None]) ** 2, axis=0).astype(jnp.float64), jnp.max(1 - others)

        total, most = sum_over_rows(block, n, lambda a, b: (a[0] + b[0], jnp.maximum(a[1], b[1])))
        return total / n, 1 - most

    losses, least = lax.map(one_alpha, alphas)
    return losses, jnp.min(least)


def generalised(
    f: Normal, y_squares: Float[Array, " C"], n: Float[Array, ""], alphas: Float[Array, " A"], *, sample_space: bool
) -> Float[Array, "A C"]:
    """Generalised cross-validation: leave-one-out with every h at its mean."""

    def one_alpha(alpha):
        root = _inverse_root(f.matrix, alpha)
        weights = product(root.T, product(root, f.cross))
        trace = alpha * jnp.sum(root**2)
        if sample_space:
            others = trace - n * constant_share(jnp.diagonal(f.matrix), alpha[None])[0]
            return n * jnp.sum((alpha * weights) ** 2, axis=0) / others**2
        others = n - 1 - len(f.matrix) + trace
        # ||y - x w||^2 = y'y - w'x'y - alpha w'w, from (x'x + alpha I) w = x'y.
        residual_squares = y_squares - jnp.sum(weights * f.cross, axis=0) - alpha * jnp.sum(weights**2, axis=0)
        return n * residual_squares / others**2

    return lax.map(one_alpha, alphas)


def weights_at(f: Normal, x: Float[Array, "N D"], alpha: Float[Array, " C"]) -> Float[Array, "D C"]:
    """Weights at one penalty a target."""

    def one_target(args):
        root = _inverse_root(f.matrix, args[0])
        return product(root.T, product(root, args[1]))

    weights = lax.map(one_target, (alpha, f.cross.T)).T
    if not in_sample_space(*x.shape):
        return weights
    return product((x.astype(jnp.float64) - f.x_mean[None]).T, weights.astype(jnp.float64))


def condition_at(f: Normal, alpha: Float[Array, ""]) -> Float[Array, ""]:
    """Largest variance inflation factor; NaN where x was not finite. See factors.condition_at."""
    inverse = jnp.sum(_inverse_root(f.matrix, alpha) ** 2, axis=0)
    return jnp.where(f.finite, jnp.max(jnp.diagonal(f.matrix) * inverse), jnp.nan)


def _inverse_root(matrix, alpha):
    """R [K, K] with (matrix + alpha I)^-1 = R'R."""
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    return solve_triangular(jnp.linalg.cholesky(matrix + alpha.astype(matrix.dtype) * eye), eye, lower=True)
