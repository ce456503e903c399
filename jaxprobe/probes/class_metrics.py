"""Scores of class probabilities, with bootstrap intervals over test rows or whole groups of them.

As in metrics.py every metric is a function of row weights, so a score and its bootstrap replicates come from the same
lines. Where a resample lacks a class, means over classes are over those that it has.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxprobe.errors import InputError
from jaxprobe.probes.metrics import RANK_REPLICATES, Interval, intervals_of

BINS = 15  # of the top label's probability, for the calibration error (Guo et al. 2017)
MOST_RANKED = 20  # classes with an interval of the AUROC: beyond, its sorted sums take minutes


def score_classes(
    code: np.ndarray,
    log_probabilities: np.ndarray,
    *,
    groups: Sequence | None = None,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """Every metric of every layer with its bootstrap interval, [L].

    Args:
      code: [N] number of each row's class, below K.
      log_probabilities: [L, N, K] of L probes, normalised.
      groups, replicates, level, seed, metrics: as in `metrics.score`.

    Returns:
      accuracy; balanced_accuracy (mean over classes of the share of their rows that is found); macro_f1; auroc (of two
      classes that of the second; of more the mean over classes of each against the rest); log_loss (nats a row);
      calibration_error (mean distance of the top label's probability from how often it is right, by bins).

    Raises:
      InputError: shapes that do not fit.
    """
    code, log_p = _checked(code, log_probabilities)
    names = [name for name in CLASS_METRICS if metrics is None or name in metrics]
    limits = {"auroc": RANK_REPLICATES if log_p.shape[2] <= MOST_RANKED else 0}
    layers = []
    for layer in log_p:  # one in float64 at a time
        made = {name: CLASS_METRICS[name](code, layer[None].astype(np.float64)) for name in names}
        layers.append(intervals_of(made, len(code), groups, replicates, level, seed, limits))
    return {
        name: Interval(*map(np.concatenate, zip(*(found[name] for found in layers), strict=True))) for name in names
    }


def accuracy_difference(
    code: np.ndarray,
    scores: np.ndarray,
    base: np.ndarray,
    *,
    groups: Sequence | None = None,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """[L] accuracy of scores [L, N, K] less that of base [L or 1, N, K], both from the same resampled rows."""
    pair = [_accuracy(*_checked(code, part)) for part in (scores, base)]
    made = {"accuracy": lambda weights: pair[0](weights) - pair[1](weights)}
    return intervals_of(made, len(code), groups, replicates, level, seed, {})["accuracy"]


def _checked(code: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    code, scores = np.asarray(code), np.asarray(scores)
    if scores.ndim != 3 or scores.shape[1] != len(code) or not len(code) or code.max() >= scores.shape[2]:
        raise InputError(f"Labels have shape {code.shape}, log-probabilities {scores.shape}; wanted [N] and [L, N, K].")
    return code, scores


# Each takes code [N] and log-probabilities [L, N, K], and returns a function of weights [B, N] that gives [B, L].


def _accuracy(code: np.ndarray, log_p: np.ndarray) -> Callable:
    right = (log_p.argmax(-1) == code).astype(np.float64)  # [L, N]
    return lambda weights: weights @ right.T / weights.sum(1, keepdims=True)


def _counts(code: np.ndarray, log_p: np.ndarray) -> tuple[Callable, list[Callable], list[Callable]]:
    """weights [B, N] -> rows of each class [B, K]; and for each layer those that are found, and those that it names."""
    classes = log_p.shape[2]

    def by_class(of: np.ndarray, where: np.ndarray) -> Callable:
        one_hot = np.eye(classes)[of] * where[:, None]
        return lambda weights: weights @ one_hot

    top = log_p.argmax(-1)
    everywhere = np.ones(len(code))
    found = [by_class(code, named == code) for named in top]
    return by_class(code, everywhere), found, [by_class(named, everywhere) for named in top]


def _balanced_accuracy(code: np.ndarray, log_p: np.ndarray) -> Callable:
    true, found, _ = _counts(code, log_p)

    def of(weights):
        rows = true(weights)
        return np.stack([_mean_over(layer(weights), rows) for layer in found], axis=1)

    return of


def _macro_f1(code: np.ndarray, log_p: np.ndarray) -> Callable:
    true, found, named = _counts(code, log_p)

    def of(weights):
        rows = true(weights)
        both = [(2 * f(weights), rows + n(weights)) for f, n in zip(found, named, strict=True)]
        return np.stack([_mean_over(*pair) for pair in both], axis=1)

    return of


def _mean_over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """[B] mean over classes of part / whole [B, K], of those where there is something."""
    there = whole > 0
    return np.where(there, part / np.where(there, whole, 1), 0).sum(1) / there.sum(1)


def _auroc(code: np.ndarray, log_p: np.ndarray) -> Callable:
    classes = [1] if log_p.shape[2] == 2 else range(log_p.shape[2])
    # Of two classes the probabilities sum to 1; their difference keeps the digits that a probability near 1 loses.
    scores = log_p[..., 1:] - log_p[..., :1] if log_p.shape[2] == 2 else log_p
    areas = [[_area(code == k, layer[:, column]) for column, k in enumerate(classes)] for layer in scores]

    def of(weights):
        layers = [np.stack([area(weights) for area in layer]) for layer in areas]  # [K, B]
        there = [np.isfinite(layer) for layer in layers]
        sums = [np.where(known, layer, 0).sum(0) for layer, known in zip(layers, there, strict=True)]
        counts = [known.sum(0) for known in there]
        with np.errstate(invalid="ignore"):
            return np.stack([total / count for total, count in zip(sums, counts, strict=True)], axis=1)

    return of


def _area(positive: np.ndarray, scores: np.ndarray) -> Callable:
    """weights (counts) [B, N] -> [B] share of (positive, other) pairs in which the positive has the larger score.

    Ties count half. NaN where a side has no row.
    """
    _, tie = np.unique(scores, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(tie[order])), len(tie) - 1)
    positive = positive[order]

    def of(weights):
        weights = weights[:, order]
        inside, outside = (
            np.diff(np.cumsum(weights * part, axis=1)[:, ends], axis=1, prepend=0) for part in (positive, ~positive)
        )
        below = np.cumsum(outside, axis=1) - outside
        pairs = inside.sum(1) * outside.sum(1)
        won = (inside * (below + outside / 2)).sum(1)
        return np.where(pairs > 0, won / np.where(pairs > 0, pairs, 1), np.nan)

    return of


def _log_loss(code: np.ndarray, log_p: np.ndarray) -> Callable:
    losses = -log_p[:, np.arange(len(code)), code]
    return lambda weights: weights @ losses.T / weights.sum(1, keepdims=True)


def _calibration_error(code: np.ndarray, log_p: np.ndarray) -> Callable:
    right = log_p.argmax(-1) == code
    sure = np.exp(log_p.max(-1))
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    # In a bin the difference of the sums is its rows times the distance of the means.
    signed = [np.eye(BINS)[p] * (s - r)[:, None] for p, s, r in zip(place, sure, right, strict=True)]

    def of(weights):
        total = weights.sum(1)
        return np.stack([np.abs(weights @ layer).sum(1) / total for layer in signed], axis=1)

    return of


CLASS_METRICS: dict[str, Callable] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "auroc": _auroc,
    "log_loss": _log_loss,
    "calibration_error": _calibration_error,
}
