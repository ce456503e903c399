"""Probes of the first k principal components of x, for every k out of one eigendecomposition.

With x'x = Q diag(e) Q' (means taken out, e descending) and the scores z = x Q, ridge on the first k components has

    weights      b_d / (e_d + alpha),  b = z'y,  d <= k
    leverage     h = 1/N + sum_{d <= k} z_d^2 / (e_d + alpha)

so that fitted values and leverages of all k, and with them the exact leave-one-out error (y - yhat) / (1 - h), are
running sums over d. The components themselves are those of all rows. NumPy in float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxprobe.errors import InputError

COUNTS = (1, 2, 4, 6, 8, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 4000)
ALPHAS = 10.0 ** np.linspace(-6, 2, 17)  # in the median sum of squares of a dimension
ROWS = 4096  # rows a block


class ComponentFit(NamedTuple):
    """Probes of the first k components, for J values of k.

    Attributes:
      counts: [J] k.
      variance: [J] the share of the variance of x that lies in the first k components.
      alpha: [J] the penalty that leave-one-out chose.
      loo_mse: [J, C] its leave-one-out mean squared error, squared target units.
      weights: [J, D, C] target units per unit of activation.
      intercept: [J, C] target units; prediction = x @ weights + intercept.
      x_mean: [D] mean of the training rows.
    """

    counts: Int[np.ndarray, " J"]
    variance: Float[np.ndarray, " J"]
    alpha: Float[np.ndarray, " J"]
    loo_mse: Float[np.ndarray, "J C"]
    weights: Float[np.ndarray, "J D C"]
    intercept: Float[np.ndarray, "J C"]
    x_mean: Float[np.ndarray, " D"]

    def predict(self, x: np.ndarray) -> Float[np.ndarray, "J N C"]:
        """Predictions in target units of states x [N, D]."""
        at_mean = self.intercept + self.x_mean @ self.weights
        return (np.asarray(x, np.float64) - self.x_mean) @ self.weights + at_mean[:, None]


def fit_components(
    x: np.ndarray, y: np.ndarray, counts: Sequence[int] = COUNTS, alphas: np.ndarray | Sequence[float] | None = None
) -> ComponentFit:
    """Probes of the first k principal components, each at the penalty of its least leave-one-out error.

    Args:
      x: [N, D] states of one layer, any float dtype.
      y: [N, C] targets; the mean over targets of MSE / var chooses.
      counts: k; those that x has not (of N rows N - 1, at most D) are left out, and all that it has are added.
      alphas: penalties in squared activation, 0 or more; default: a grid relative to the layer's own scale.

    Raises:
      InputError: fewer than three rows, shapes that do not fit, values that are not finite.
    """
    y = np.asarray(y, np.float64)
    if np.ndim(x) != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < 3:
        raise InputError(f"x has shape {np.shape(x)}, y {y.shape}; wanted [N, D] and [N, C] with N of 3 or more.")
    blocks = [slice(first, first + ROWS) for first in range(0, len(x), ROWS)]
    wide = lambda block: np.asarray(x[block], np.float64)
    x_mean = sum(wide(block).sum(0) for block in blocks) / len(x)
    if not (np.isfinite(x_mean).all() and np.isfinite(y).all()):
        raise InputError("x or y is not finite. Look for states or targets that are not.")
    gram = sum((wide(block) - x_mean).T @ (wide(block) - x_mean) for block in blocks)
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    rank = min(len(x) - 1, int((values > values[0] * len(values) * np.finfo(np.float64).eps).sum()))
    if not rank:
        raise InputError("All rows of x are the same, which leaves no component. Pass states that differ.")
    ends = np.array(sorted({k for k in counts if 0 < k < rank} | {rank}))
    if alphas is None:
        squares = np.diag(gram)
        alphas = ALPHAS * np.median(squares[squares > 0])
    alphas = np.asarray(alphas, np.float64)

    y_mean = y.mean(0)
    centred = y - y_mean
    rotated = vectors[:, :rank].T @ sum((wide(block) - x_mean).T @ centred[block] for block in blocks)
    shrink = 1 / (values[:rank, None] + alphas)  # [K, A]
    coefficients = (shrink[:, :, None] * rotated[:, None]).reshape(rank, -1)  # [K, A x C]
    segments = [slice(*edges) for edges in zip([0, *ends], ends, strict=False)]
    squares = np.zeros((len(ends), len(alphas), y.shape[1]))
    for block in blocks:
        z = (wide(block) - x_mean) @ vectors[:, :rank]
        fitted, leverage = np.zeros((len(z), coefficients.shape[1])), np.full((len(z), len(alphas)), 1 / len(x))
        for j, segment in enumerate(segments):
            fitted += z[:, segment] @ coefficients[segment]
            leverage += z[:, segment] ** 2 @ shrink[segment]
            residual = centred[block][:, None] - fitted.reshape(len(z), len(alphas), -1)
            squares[j] += ((residual / (1 - leverage)[:, :, None]) ** 2).sum(0)
    losses = squares / len(x)
    spread = np.where(centred.var(0) > 0, centred.var(0), 1)
    best = (losses / spread).mean(-1).argmin(1)
    kept = np.arange(rank)[None, :, None] < ends[:, None, None]
    weights = vectors[:, :rank] @ np.where(kept, shrink.T[best][:, :, None] * rotated, 0)
    return ComponentFit(
        ends,
        np.cumsum(values)[ends - 1] / values.sum(),
        alphas[best],
        losses[np.arange(len(ends)), best],
        weights,
        y_mean - x_mean @ weights,
        x_mean,
    )
