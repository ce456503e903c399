"""What keeps an encoder from mapping everything to one point, and how one sees that it did.

An encoder trained only to be predictable has a perfect solution that knows nothing: a constant. The terms here are
added to the loss; each is a function of a batch of codes alone. Letters: N row, D dimension.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

KNOTS, LARGEST = 17, 3.0  # of the integral over t in sigreg
SLICES = 256


def vicreg(h: Float[Array, "N D"]) -> Float[Array, ""]:
    """Deviations of 1 and no covariance: mean hinge on each deviation, and mean squared off-diagonal covariance.

    Source: Bardes, Ponce & LeCun (2022), arXiv 2105.04906; as in facebookresearch/eb_jepa, losses.py (HingeStdLoss
      with margin 1, CovarianceLoss). Its invariance term is the prediction error itself.
    """
    centred = h - h.mean(0, keepdims=True)
    width = h.shape[1]
    covariance = centred.T @ centred / (len(h) - 1)
    off_diagonal = jnp.square(covariance).sum() - jnp.square(jnp.diag(covariance)).sum()
    deviation = jnp.sqrt(jnp.square(centred).mean(0) + 1e-4)
    return jax.nn.relu(1 - deviation).mean() + off_diagonal / (width * (width - 1))


def sigreg(h: Float[Array, "N D"], key: Array, slices: int = SLICES) -> Float[Array, ""]:
    """How far random projections of h are from a standard normal: N times the Epps-Pulley statistic, mean over slices.

    The statistic is the integral over t of |mean exp(i t u) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by the trapezoid rule on
    [-3, 3].

    Source: Balestriero & LeCun (2025), arXiv 2511.08544; rbalestr-lab/lejepa, MINIMAL.md.
    """
    directions = jax.random.normal(key, (h.shape[1], slices))
    return epps_pulley(h @ (directions / jnp.linalg.norm(directions, axis=0, keepdims=True))).mean()


def epps_pulley(u: Float[Array, "N slices"]) -> Float[Array, " slices"]:
    """The statistic of `sigreg` for each column."""
    t = jnp.linspace(0, LARGEST, KNOTS)
    step = LARGEST / (KNOTS - 1)
    # Both halves of the line at once: the integrand is even.
    trapezoid = jnp.full(KNOTS, 2 * step).at[jnp.array([0, -1])].set(step)
    normal = jnp.exp(-jnp.square(t) / 2)
    angles = jnp.einsum("ns,t->nst", u, t)
    gap = jnp.square(jnp.cos(angles).mean(0) - normal[None]) + jnp.square(jnp.sin(angles).mean(0))
    return gap @ (trapezoid * normal) * len(u)


def none(h: Float[Array, "N D"]) -> Float[Array, ""]:
    """Nothing: the control."""
    return jnp.zeros((), h.dtype)


class Spread(NamedTuple):
    """How much room codes take.

    Attributes:
      deviation: root of the mean variance of a dimension; 0 is collapse.
      effective_rank: of the centred codes. It has no scale, so it does not see codes that shrink to a point.
    """

    deviation: float
    effective_rank: float


def spread(h: np.ndarray) -> Spread:
    """The spread of codes h [N, D]."""
    h = np.asarray(h, np.float64)
    return Spread(float(np.sqrt(h.var(0).mean())), effective_rank(h - h.mean(0)))


def effective_rank(h: np.ndarray) -> float:
    """exp of the entropy of the singular values' shares, of h [N, D].

    Source: RankMe, Garrido et al. (2023), arXiv 2210.02885.
    """
    sizes = np.linalg.svd(np.asarray(h, np.float64), compute_uv=False)
    if not sizes.sum() > 0:
        return 0.0
    shares = sizes[sizes > 0] / sizes.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
