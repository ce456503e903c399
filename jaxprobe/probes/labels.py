"""Class probes: which label does a state carry? Linear scores of every class, whose softmax is its probability.

Four ways to the same form, scores = x w + b [N, K]:

    ridge      ridge regression of the labels' one-hot rows, penalty by exact leave-one-out of the squared error
               (Brier's score); equals scikit-learn's RidgeClassifierCV in what it predicts
    lda        linear discriminants, w_k = S^-1 m_k, b_k = log(n_k / N) - m_k' S^-1 m_k / 2, with S the covariance
               inside the classes, to which ridge's penalty is added
    means      the same with a multiple of the identity for S: the nearest class mean; of two classes the direction is
               the difference of their means
    logistic   multinomial logistic regression with a penalty, by Newton's method from the largest penalty down

Ridge and means give scores without a unit: they are multiplied by the one number that makes the softmax of their exact
leave-one-out scores the likeliest, so that an overfitted probe is not sure of itself.
Sources: Hastie, Tibshirani & Friedman (2009), sections 4.2 to 4.4 and 7.10; Guo et al. (2017), arXiv 1706.04599, for
the scale; Böhning (1992) for the bound that preconditions Newton's steps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from jaxprobe.errors import InputError
from jaxprobe.probes.ridge import fit_ridge

CLASSIFIERS = ("ridge", "lda", "means", "logistic")
VALIDATION = 0.25  # of the training rows, on which logistic regression's penalty is chosen
NEWTON_STEPS, CG_STEPS, HALVINGS = 50, 100, 30
TOLERANCE = 1e-6  # of the gradient, relative to the first one; the log-loss is then right to about its square


class ClassFit(NamedTuple):
    """Class probes of L layers at their chosen penalty.

    Attributes:
      classes: K labels, in sorted order.
      weights: [L, D, K]; the softmax of x @ weights + intercept is the probability of each class.
      intercept: [L, K].
      alpha: [L] the chosen penalty in squared activation; NaN for the means, which have none.
      loss: [L] what the penalty and the headline are chosen by, on the training rows alone: leave-one-out log-loss
        (ridge and means), or that of the rows set apart (lda and logistic). Nats a row.
    """

    classes: tuple[str, ...]
    weights: np.ndarray
    intercept: np.ndarray
    alpha: np.ndarray
    loss: np.ndarray


def check_labels(labels: Sequence) -> tuple[tuple[str, ...], np.ndarray]:
    """(classes, code [N]): the K labels in sorted order, and the number of each row's.

    Raises:
      InputError: fewer than two labels, or a label that only one row has.
    """
    names, code, counts = np.unique(np.asarray(labels).astype(str), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InputError(f"All {len(code)} training rows have the label {str(names[0])!r}. Two labels are needed.")
    if counts.min() < 2:
        single = [str(name) for name in names[counts < 2]]
        raise InputError(
            f"{len(single)} labels have one training row only ({', '.join(single[:5])}); wanted 2 or more of each. "
            "Leave these rows out, or take a coarser label."
        )
    return tuple(map(str, names)), code


def fit_classes(
    activations: Mapping[str, np.ndarray],
    rows: np.ndarray,
    labels: Sequence,
    classifier: str = "ridge",
    alphas: Sequence[float] | None = None,
    *,
    seed: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> ClassFit:
    """A class probe for every state, in the mapping's order; one state is in memory at a time.

    Args:
      activations: state name -> [all rows, D].
      rows: [all rows] bool, the training rows.
      labels: one for each training row, in their order.
      classifier: one of CLASSIFIERS.
      alphas: penalties > 0 in squared activation; None takes a grid relative to each state's own scale.
      seed: of the rows on which logistic regression and lda choose their penalty.
      advance: told 1 after each state.

    Raises:
      InputError: labels or states that can't be fitted, or a classifier that is not known.
    """
    if not activations:
        raise InputError("There are no states to fit. Extract some first.")
    classes, code = check_labels(labels)
    fits = []
    for name, state in activations.items():
        fits.append(fit_state(state[np.flatnonzero(rows)], code, classifier, alphas, seed=seed, name=name))
        advance(1)
    weights, intercept, alpha, loss = map(np.stack, zip(*fits, strict=True))
    return ClassFit(classes, weights.astype(np.float32), intercept, alpha, loss)


def fit_state(
    x: np.ndarray,
    code: np.ndarray,
    classifier: str = "ridge",
    alphas: Sequence[float] | None = None,
    *,
    seed: int = 0,
    name: str = "0",
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """(weights [D, K], intercept [K], penalty, loss), as in ClassFit, of one state.

    Args:
      x: [N, D]; code: [N] numbers of the labels, 0 to K - 1, each of some rows.
      name: of the state, for messages.
    Other arguments and errors are those of ``fit_classes``.
    """
    if classifier not in CLASSIFIERS:
        raise InputError(f"Classifier {classifier!r} is not one of {', '.join(CLASSIFIERS)}.")
    if len(x) != len(code):
        raise InputError(f"State {name!r} has {len(x)} training rows for {len(code)} labels. Give one for each.")
    x = np.asarray(x, np.float32)
    if not np.isfinite(x.sum(dtype=np.float64)):
        raise InputError(f"State {name!r} holds values that are not finite. Extract it in float32.")
    return _FITS[classifier](x, code, alphas, seed, name)


def class_scores(fit: ClassFit, layer: int, x: np.ndarray) -> np.ndarray:
    """[N, K] log-probabilities by the layer-th probe of states x [N, D], in float64."""
    if x.shape[-1] != fit.weights.shape[1]:
        raise InputError(f"x has {x.shape[-1]} dimensions, the probe {fit.weights.shape[1]}. Pass the model's states.")
    return log_softmax(np.asarray(x, np.float64) @ fit.weights[layer].astype(np.float64) + fit.intercept[layer])


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Scores [..., K] less the logarithm of the sum of their exponentials."""
    return scores - logsumexp(scores, axis=-1, keepdims=True)


# ---- Ridge on one-hot rows ------------------------------------------------------------------------------------------


def _fit_by_ridge(x, code, alphas, seed, name):
    y = np.eye(code.max() + 1)[code]
    alpha, weights, intercept = _ridge(x, y, alphas, name)
    held_out = leave_one_out(x, y, alpha)
    scale, loss = likeliest_scale(held_out, code)
    return weights * scale, intercept * scale, alpha, loss


def _ridge(x: np.ndarray, y: np.ndarray, alphas, name: str) -> tuple[float, np.ndarray, np.ndarray]:
    """(penalty of the least leave-one-out squared error summed over classes, weights [D, K], intercept [K])."""
    fit = fit_ridge(x[None], y, alphas, names=[name])
    errors = fit.loo_mse[0].sum(axis=-1)  # a class counts by its rows, and not by one over its variance
    alpha = float(fit.alphas[0][np.nanargmin(errors)])
    if alpha != float(fit.alpha[0]):
        fit = fit_ridge(x[None], y, [alpha], names=[name])
    return alpha, fit.weights[0].astype(np.float64), fit.intercept[0].astype(np.float64)


def leave_one_out(x: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
    """[N, K] ridge's prediction of each row of y [N, K] by the fit on all other rows of x [N, D], in float64.

    y_i - (y_i - x_i w) / (1 - h_i), of one Cholesky factor: of x'x, or of x x' where that is the smaller one.
    """
    n, d = x.shape
    centred, mean = np.asarray(x, np.float64) - x.mean(0, dtype=np.float64), y.mean(0)
    if n > d:
        factor = cholesky(centred.T @ centred + alpha * np.eye(d), lower=True)
        z = solve_triangular(factor, centred.T, lower=True)
        leverage, fitted = np.square(z).sum(0), z.T @ (z @ (y - mean))
    else:
        factor = cholesky(centred @ centred.T + alpha * np.eye(n), lower=True)
        z = solve_triangular(factor, np.eye(n), lower=True)  # (xx' + alpha)^-1 = z'z
        leverage, fitted = 1 - alpha * np.square(z).sum(0), (y - mean) - alpha * (z.T @ (z @ (y - mean)))
    left = np.maximum(1 - 1 / n - leverage, 1e-9)
    return y - (y - mean - fitted) / left[:, None]


def likeliest_scale(scores: np.ndarray, code: np.ndarray) -> tuple[float, float]:
    """(the factor of scores [N, K] whose softmax makes the labels likeliest, the log-loss then in nats a row)."""
    spread = np.ptp(scores, axis=1).mean()
    if spread == 0:
        return 1.0, float(np.log(scores.shape[1]))

    def loss(log_factor: float) -> float:
        return -float(log_softmax(np.exp(log_factor) / spread * scores)[np.arange(len(code)), code].mean())

    best = minimize_scalar(loss, bounds=(-12, 12), method="bounded")  # convex in the factor, so of one minimum
    return float(np.exp(best.x) / spread), float(best.fun)


# ---- Discriminants --------------------------------------------------------------------------------------------------


def discriminants(
    means: np.ndarray, within: np.ndarray, counts: np.ndarray, alpha: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """(weights [D, K], intercept [K]) of linear discriminants, from moments alone.

    Args:
      means: [K, D] of the classes.
      within: [D, D] sum of squares about the class means.
      counts: [K] rows of each class.
      alpha: added to the diagonal of ``within``; at 0 they are scikit-learn's (solver "lsqr").
    """
    rows = counts.sum()
    factor = cho_factor((within + alpha * np.eye(len(within))) / rows, lower=True)
    weights = cho_solve(factor, means.T)
    return weights, np.log(counts / rows) - 0.5 * np.einsum("kd,dk->k", means, weights)


def _class_moments(x: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(means [K, D] about the mean of all, within [D, D], counts [K]) in float64, of x [N, D] less its mean."""
    counts = np.bincount(code).astype(np.float64)
    one_hot = np.eye(len(counts))[code]
    means = one_hot.T @ x / counts[:, None]
    inside = x - means[code]
    return means, inside.T @ inside, counts


def _fit_discriminants(x, code, alphas, seed, name):
    centre = x.mean(0, dtype=np.float64)
    centred = x - centre
    kept, apart = _set_apart(code, seed)
    grid = _penalties(centred, alphas)
    moments, losses = _class_moments(centred[kept], code[kept]), []
    for alpha in grid:
        weights, intercept = discriminants(*moments, alpha)
        losses.append(_log_loss(centred[apart] @ weights + intercept, code[apart]))
    best = int(np.argmin(losses))
    weights, intercept = discriminants(*_class_moments(centred, code), grid[best])
    return weights, intercept - centre @ weights, grid[best], losses[best]


def _fit_means(x, code, alphas, seed, name):
    centre = x.mean(0, dtype=np.float64)
    centred = x - centre
    counts = np.bincount(code)
    means = np.eye(len(counts))[code].T @ centred / counts[:, None]
    # Without row i the mean of its class is m + (m - x_i) / (n - 1).
    own = means[code] + (means[code] - centred) / np.maximum(counts[code] - 1, 1)[:, None]  # a row alone keeps its own
    scores = centred @ means.T - 0.5 * np.square(means).sum(1)
    scores[np.arange(len(code)), code] = np.einsum("nd,nd->n", centred, own) - 0.5 * np.square(own).sum(1)
    scale, loss = likeliest_scale(scores, code)
    weights = means.T * scale
    return weights, -0.5 * np.square(means).sum(1) * scale - centre @ weights, np.nan, loss


# ---- Logistic regression --------------------------------------------------------------------------------------------


def _fit_logistic(x, code, alphas, seed, name):
    centre = x.mean(0, dtype=np.float64)
    centred = x - centre
    kept, apart = _set_apart(code, seed)
    grid = np.sort(_penalties(centred, alphas))[::-1]
    classes = code.max() + 1
    losses: list[float] = []
    for weights, intercept in logistic_path(centred[kept], code[kept], classes, grid):
        losses.append(_log_loss(centred[apart] @ weights + intercept, code[apart]))
        if losses[-1] > 1.5 * min(losses):  # smaller penalties only overfit more
            break
    best = int(np.argmin(losses))
    *_, (weights, intercept) = logistic_path(centred, code, classes, grid[: best + 1])
    return weights, intercept - centre @ weights, grid[best], losses[best]


def logistic_path(x: np.ndarray, code: np.ndarray, classes: int, alphas: Sequence[float]):
    """(weights [D, K], intercept [K]) for each penalty in turn, each from the one before.

    Minimises the sum of the rows' log-losses + alpha / 2 |weights|^2, the intercept free; scikit-learn's
    LogisticRegression(C=1 / alpha).

    Args:
      x: [N, D] float64; code: [N] numbers of the labels, below ``classes``.
    """
    shares = np.maximum(np.bincount(code, minlength=classes), 0.5) / len(code)
    parameters = np.zeros((classes, x.shape[1] + 1))
    parameters[:, -1] = np.log(shares) - np.log(shares).mean()
    rows, y = np.c_[x, np.ones(len(x))], np.eye(classes)[code]
    gram = rows.T @ rows
    with jax.enable_x64(True):
        rows, y, gram = map(jnp.asarray, (rows, y, gram))
    for alpha in alphas:
        with jax.enable_x64(True):  # not around the yield, which would leave it on for the caller
            parameters = np.asarray(_newton(rows, y, gram, parameters, float(alpha)))
        yield parameters[:, :-1].T, parameters[:, -1]


@jax.jit
def _newton(x, y, gram, start, alpha):
    """Newton's method with conjugate gradients for its steps, preconditioned by half of x'x + alpha (Böhning's bound).

    x [N, D + 1] with a last column of ones, y [N, K], parameters [K, D + 1]. A step is halved until the loss falls.
    """
    penalty = jnp.full((1, x.shape[1]), alpha).at[0, -1].set(0.0)
    ridge = penalty.at[0, -1].set(1e-9 * len(x))  # the intercepts may all move together
    factor = jax.scipy.linalg.cho_factor(0.5 * gram + jnp.diag(ridge[0]))

    def loss(w):
        scores = x @ w.T
        return jnp.sum(jax.nn.logsumexp(scores, axis=1) - jnp.sum(scores * y, axis=1)) + 0.5 * jnp.sum(penalty * w**2)

    gradient = jax.grad(loss)

    def step(state):
        w, g, _, count = state
        chances = jax.nn.softmax(x @ w.T, axis=1)

        def curvature(v):
            moved = x @ v.T
            weighted = chances * (moved - jnp.sum(chances * moved, axis=1, keepdims=True))
            return weighted.T @ x + ridge * v

        direction, _ = jax.scipy.sparse.linalg.cg(
            curvature, -g, tol=1e-3, maxiter=CG_STEPS, M=lambda v: jax.scipy.linalg.cho_solve(factor, v.T).T
        )
        before, slope = loss(w), jnp.vdot(g, direction)

        def too_long(tried):
            length, halvings = tried
            return (loss(w + length * direction) > before + 1e-4 * length * slope) & (halvings < HALVINGS)

        length, halvings = lax.while_loop(too_long, lambda tried: (tried[0] / 2, tried[1] + 1), (1.0, 0))
        w = jnp.where(halvings < HALVINGS, w + length * direction, w)
        return w, gradient(w), halvings < HALVINGS, count + 1

    first = gradient(start)
    # Of a start at the minimum of a neighbouring penalty the gradient is small already: the rows set the scale.
    goal = TOLERANCE * (jnp.linalg.norm(y.T @ x - jnp.outer(jnp.mean(y, 0), jnp.sum(x, 0))) + 1e-12)
    going = lambda state: (jnp.linalg.norm(state[1]) > goal) & state[2] & (state[3] < NEWTON_STEPS)
    return lax.while_loop(going, step, (start, first, True, 0))[0]


# ---- What the fits share --------------------------------------------------------------------------------------------


def _penalties(centred: np.ndarray, alphas: Sequence[float] | None) -> np.ndarray:
    """Those given, or 12 from 1e-5 to 3 times the median dimension's sum of squares, where ridge's own grid lies."""
    if alphas is not None:
        grid = np.atleast_1d(np.asarray(alphas, np.float64))
        if not (np.isfinite(grid).all() and (grid > 0).all()):
            raise InputError(f"Penalties must be positive numbers; found {list(grid)}.")
        return grid
    squares = np.square(centred).sum(0)
    scale = float(np.median(squares)) or float(squares.mean()) or 1.0
    return scale * np.logspace(-5, 0.5, 12)


def _set_apart(code: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows kept, rows set apart): of every class the share VALIDATION, seeded, and at least one row kept."""
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.random(len(code)), code))  # class by class, in random order inside
    counts = np.bincount(code)
    place = np.arange(len(code)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Rounding by a random offset a class: with many small classes the share is right over all of them.
    apart = place < np.repeat(np.minimum(np.floor(VALIDATION * counts + rng.random(len(counts))), counts - 1), counts)
    if not apart.any():
        apart[-1] = True  # of a class of two rows or more
    return np.sort(order[~apart]), np.sort(order[apart])


def _log_loss(scores: np.ndarray, code: np.ndarray) -> float:
    return -float(log_softmax(scores)[np.arange(len(code)), code].mean())


_FITS = {"ridge": _fit_by_ridge, "lda": _fit_discriminants, "means": _fit_means, "logistic": _fit_logistic}
