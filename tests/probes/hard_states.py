"""States that are hard in the ways that models' are, and float64 truth about them.

Truth is a float64 Cholesky factorisation along principal axes: an eigendecomposition of x'x is itself off by 1e-2 at
the smallest penalties where massive dimensions move together.
"""

import ml_dtypes
import numpy as np
import scipy.linalg

RELATIVE = 10.0 ** np.linspace(-4, 1.5, 12)


def make_states(kind, n, d, seed=0):
    """x [N, D] float32 with eigenvalues that fall as 1/k, then what ``kind`` names; y [N, 2] float64."""
    rng = np.random.default_rng(seed)
    k = d // 2 if "half rank" in kind else d
    axes = rng.normal(size=(k, d)) / np.sqrt(d)
    factors = rng.normal(size=(n, k)) * np.arange(1, k + 1) ** -0.5
    x = factors @ axes * 10 + (0 if "half rank" in kind else 0.05 * rng.normal(size=(n, d)))
    signal = factors @ (rng.normal(size=(k, 2)) * (np.arange(k) < 100)[:, None])
    y = signal + 0.7 * signal.std() * rng.normal(size=(n, 2)) + [1900, -3]
    if "duplicated" in kind:
        x[:, d // 2 : d // 2 + d // 10] = x[:, : d // 10]
    if "massive" in kind:  # six dimensions of 1e3 to 1e5 that move together to 1e-3, 2 % of the rows huge in them
        common = rng.normal(size=(n, 1)) + 3 + 30 * (rng.random((n, 1)) < 0.02)
        sizes = np.array([1e3, 3e3, 1e4, 1e4, 3e4, 1e5]) * [1, 1, -1, 1, 1, -1]
        x[:, 5:11] = sizes * common * (1 + 1e-3 * rng.normal(size=(n, 6))) * 0.3
    if "few rows" in kind:  # three rows that are alone in a dimension
        x[:3, 7] = 1e5
    if "one row" in kind:  # one that is far from all others in every dimension
        x[1] *= 1e4
    if "constant" in kind:
        x[:, ::9] = 0.1
    if "bfloat16" in kind:
        x = x.astype(ml_dtypes.bfloat16)
    return x.astype(np.float32), y


class Truth:
    """Ridge of x [N, D], y [N, C] (standardised here) in float64.

    Attributes:
      scale: the median sum of squares of a dimension; penalties are in its unit.
    """

    def __init__(self, x, y):
        x = x.astype(np.float64)
        centred = x - x.mean(0)
        squares = (centred**2).sum(0)
        self.scale = np.median(squares[np.ptp(x, axis=0) > 0])
        top = np.argsort(-squares)[:64]
        axes = np.linalg.eigh(centred[:, top].T @ centred[:, top])[1]
        self.x = centred
        self.x[:, top] = centred[:, top] @ axes
        self.y_mean, self.y_scale = y.mean(0), y.std(0)
        self.y = (y - self.y_mean) / self.y_scale

    def leave_one_out(self, alpha):
        """(the least 1 - h, the criterion by target [C], fitted values [N, C] in the targets' units)."""
        root, n = self._root(self.x, alpha), len(self.x)
        z = scipy.linalg.solve_triangular(root, self.x.T, lower=True).T
        fitted = z @ (z.T @ self.y)
        others = 1 - 1 / n - (z**2).sum(1)
        losses = np.mean(((self.y - fitted) / others[:, None]) ** 2, axis=0)
        return others.min(), losses * self.y_scale**2, fitted * self.y_scale + self.y_mean

    def generalised(self, alpha):
        z = scipy.linalg.solve_triangular(self._root(self.x, alpha), self.x.T, lower=True).T
        residual, n = self.y - z @ (z.T @ self.y), len(self.x)
        return n * (residual**2).sum(0) / (n - 1 - (z**2).sum()) ** 2 * self.y_scale**2

    def without(self, labels, alpha):
        """[C] mean squared errors of each group of rows by the fit without it."""
        total = 0
        for label in np.unique(labels):
            inside = labels == label
            x_mean, y_mean = self.x[~inside].mean(0), self.y[~inside].mean(0)
            root = self._root(self.x[~inside] - x_mean, alpha)
            cross = (self.x[~inside] - x_mean).T @ (self.y[~inside] - y_mean)
            weights = scipy.linalg.cho_solve((root, True), cross)
            total += ((self.y[inside] - y_mean - (self.x[inside] - x_mean) @ weights) ** 2).sum(0)
        return total / len(self.x) * self.y_scale**2

    def _root(self, centred, alpha):
        gram = centred.T @ centred
        gram[np.diag_indices_from(gram)] += alpha
        return scipy.linalg.cholesky(gram, lower=True)
