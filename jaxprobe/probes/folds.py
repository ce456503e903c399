"""Generalised and k-fold cross-validation of one layer from moments: the rows are not looked at again."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxprobe.probes import eigen as factors
from jaxprobe.probes.eigen import Factors, factor_moments, product_dtype
from jaxprobe.probes.groups import Groups
from jaxprobe.probes.moments import Moments, centre, combine, moments_of, pilot_mean, product


def padded_rows(groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """(rows [K, S], inside [K, S]): the row numbers of each fold, padded with row 0 to the size of the largest."""
    place = np.arange(groups.sizes.max())
    inside = place < groups.sizes[:, None]
    return groups.order[np.where(inside, groups.starts[:, None] + place, 0)], inside


def fold_moments(
    x: Float[Array, "N D"], y: Float[Array, "N C"], rows: Int[Array, "K S"], inside: Bool[Array, "K S"], *, dtype: str
) -> Moments:
    """Moments of each fold, leading axis K, about the same shift."""
    dtype = product_dtype(*x.shape, dtype)
    x_shift = pilot_mean(x, dtype)
    return lax.map(lambda fold: moments_of(x[fold[0]], y[fold[0]], dtype, x_shift, fold[1]), (rows, inside))


def total(m: Moments) -> Moments:
    """All folds together."""
    summed = combine(lambda leaf: jnp.sum(leaf, axis=0), m)
    return summed._replace(x_shift=m.x_shift[0], y_shift=m.y_shift[0])


def factor(m: Moments, *, k_fold: bool) -> tuple[Factors, Factors | None]:
    """Factors of all rows, and with ``k_fold`` those without each fold, leading axis K."""
    everything = total(m)
    if not k_fold:
        return factor_moments(centre(everything)), None
    without = lax.map(lambda fold: factor_moments(centre(combine(jnp.subtract, everything, fold))), m)
    return factor_moments(centre(everything)), without


def generalised(f: Factors, m: Moments, alphas: Float[Array, " A"]) -> Float[Array, "A C"]:
    """Generalised cross-validation of the fit on all rows, in squared units of y."""
    everything = centre(total(m))
    return factors.generalised(f, everything.y_squares, everything.count, alphas, sample_space=False)


def errors(without: Factors, m: Moments, alphas: Float[Array, " A"]) -> Float[Array, "A C"]:
    """k-fold mean squared errors: the moments of each fold about the means of the other rows, and their weights."""
    everything = total(m)

    def squares_of(args):
        f, fold = args
        fold = Moments(*(leaf.astype(jnp.float64) for leaf in fold))
        x_off = f.x_mean - fold.x_shift
        y_off = (everything.y_sum - fold.y_sum) / (everything.count - fold.count)
        x_sum, y_sum = fold.x_sum - fold.count * x_off, fold.y_sum - fold.count * y_off
        xx = fold.xx - jnp.outer(fold.x_sum, x_off) - jnp.outer(x_off, x_sum)
        xy = fold.xy - jnp.outer(fold.x_sum, y_off) - jnp.outer(x_off, y_sum)
        yy = fold.yy - (fold.y_sum + y_sum) * y_off

        def one_alpha(alpha):
            weights = factors.feature_weights(f, jnp.full(xy.shape[1], alpha))
            return yy - 2 * jnp.sum(weights * xy, axis=0) + jnp.sum(weights * product(xx, weights), axis=0)

        return jax.vmap(one_alpha)(alphas)

    return jnp.sum(lax.map(squares_of, (without, m)), axis=0) / everything.count
