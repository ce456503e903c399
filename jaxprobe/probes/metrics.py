"""Scores of predictions, with bootstrap intervals over test rows or whole groups of them (the probe stays fixed).

Every metric is made into a function of row weights, so a score (all weights 1) and its bootstrap replicates (weights
are the counts of a resample) come from the same lines.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from jaxprobe.errors import InputError

EARTH_RADIUS_KM = 6371.0088  # mean radius R1 of the GRS 80 ellipsoid (Moritz 2000)
RANK_REPLICATES = 200  # Spearman and medians sort again in each replicate, so they take the first 200 only
FEWEST_GROUPS = 15  # with fewer the interval often ends above an R2 of 1, and tells little
_DEFINED = 0.99  # of the replicates, for an interval: what is left out is then less than half of a tail of 2.5 %
_COUNTS = 4_000_000  # at most so many of a chunk of resamples, whatever the number of rows: 32 MB an array


class Interval(NamedTuple):
    """A score and its bootstrap interval; ``ci_low`` and ``ci_high`` are NaN where there is none.

    Over rows the ends are percentiles of the replicates. Over groups, which are few, the interval is the score and
    Student's t times the replicates' standard deviation to either side, so an end may lie above an R2 of 1 or below an
    error of 0. Replicates without a score (R2 of a resample whose target does not vary) are left out while few.
    """

    value: np.ndarray
    ci_low: np.ndarray
    ci_high: np.ndarray


def r2(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Coefficient of determination of each target, [..., C], for y_true [N, C] and y_pred [..., N, C].

    The denominator is the sum of squares about the mean of ``y_true`` itself (the test mean, as in scikit-learn's
    ``r2_score``), not about the training mean. NaN where a target does not vary.
    """
    return _once(_r2, y_true, y_pred)


def mae(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Mean absolute error of each target in its own unit, [..., C], for y_true [N, C] and y_pred [..., N, C]."""
    return _once(_mae, y_true, y_pred)


def spearman(y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each target with mid-ranks for ties, [..., C]; NaN where one side is constant."""
    return _once(_spearman, y_true, y_pred)


def great_circle_km(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Great-circle distances in km, [...], between places [..., 2] given as (latitude, longitude) in degrees.

    On a sphere of radius 6371.0088 km (haversine). A linear probe may predict a latitude past the pole: the place is
    then the one reached by walking on over it.
    """
    a, b = np.radians(np.asarray(a, np.float64)), np.radians(np.asarray(b, np.float64))
    lat_a, lon_a, lat_b, lon_b = a[..., 0], a[..., 1], b[..., 0], b[..., 1]
    chord = np.sin((lat_b - lat_a) / 2) ** 2 + np.cos(lat_a) * np.cos(lat_b) * np.sin((lon_b - lon_a) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(chord, 0, 1)))


def score(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    *,
    places: bool = False,
    groups: Sequence | None = None,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """Every metric of every layer with its bootstrap interval.

    Args:
      y_true: [N, C] targets.
      y_pred: [L, N, C] predictions of L probes.
      places: the two targets are latitude and longitude in degrees: adds the great-circle errors.
      groups: [N] labels (country, creator): resample whole groups instead of single rows; no interval with
        fewer than FEWEST_GROUPS.
      replicates: number of resamples; 0 leaves the intervals NaN. Spearman and medians use at most 200 of them.
      level: probability that the interval is meant to cover.
      seed: equal seeds draw equal rows, whatever the predictions.
      metrics: some of the names below, where not all are wanted.

    Returns:
      "r2", "spearman", "mae": Interval of arrays [L, C + 1], the last column the mean over targets;
      "error_km_median", "error_km_mean" (places only): Interval of arrays [L].

    Raises:
      InputError: shapes that do not fit.
    """
    return _intervals(y_true, (np.asarray(y_pred, np.float64),), places, groups, replicates, level, seed, metrics)


def paired_difference(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    y_base: np.ndarray,
    *,
    places: bool = False,
    groups: Sequence | None = None,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    metrics: Sequence[str] | None = None,
) -> dict[str, Interval]:
    """``score`` of y_pred less ``score`` of y_base, both from the same resampled rows, so that what they share cancels.

    ``y_base`` is [L, N, C], or [1, N, C] to compare every layer with one; the rest is as in ``score``.
    """
    pair = np.asarray(y_pred, np.float64), np.asarray(y_base, np.float64)
    return _intervals(y_true, pair, places, groups, replicates, level, seed, metrics)


def _intervals(y_true, predictions, places, groups, replicates, level, seed, wanted) -> dict[str, Interval]:
    y_true = np.asarray(y_true, np.float64)
    for y_pred in predictions:
        _check_shapes(y_true, y_pred)
    if places and y_true.shape[1] != 2:
        raise InputError(f"Places have two targets, (latitude, longitude); found {y_true.shape[1]}.")
    names = ["r2", "spearman", "mae"] + places * ["error_km_median", "error_km_mean"]
    names = names if wanted is None else [name for name in names if name in wanted]
    metrics = {name: [_METRICS[name](y_true, y_pred) for y_pred in predictions] for name in names}
    made = {name: partial(_difference, metrics[name]) for name in names}
    limits = {"spearman": RANK_REPLICATES, "error_km_median": RANK_REPLICATES}
    return intervals_of(made, len(y_true), groups, replicates, level, seed, limits)


def intervals_of(
    metrics: Mapping[str, Callable],
    rows: int,
    groups: Sequence | None,
    replicates: int,
    level: float,
    seed: int,
    limits: Mapping[str, int],
) -> dict[str, Interval]:
    """The score (every row once) and the bootstrap interval of each metric, a function of row weights [B, N].

    ``limits``: metrics that take fewer replicates, for the time that they take.
    """
    units = None if groups is None else len(np.unique(np.asarray(groups)))
    if units is not None and units < FEWEST_GROUPS:
        replicates = 0
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    done = 0
    for counts in resample_counts(rows, groups, replicates, seed):
        for name, metric in metrics.items():
            left = min(limits.get(name, replicates) - done, len(counts))
            if left > 0:
                drawn[name].append(metric(counts[:left]))
        done += len(counts)
    everything = np.ones((1, rows))
    return {name: _interval(metric(everything)[0], drawn[name], level, units) for name, metric in metrics.items()}


def resample_counts(rows: int, groups: Sequence | None, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """How often each row is drawn, [chunk, N] resamples at a time: of rows, or of whole groups."""
    rng = np.random.default_rng(seed)
    unit = np.arange(rows) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    units = int(unit.max()) + 1
    chunk = min(RANK_REPLICATES, max(1, _COUNTS // rows))
    for start in range(0, replicates, chunk):
        size = min(chunk, replicates - start)
        drawn = rng.integers(units, size=(size, units)) + units * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)[:, unit].astype(np.float64)


def scoring_memory(rows: int, layers: int, targets: int) -> int:
    """Bytes that `score` takes at most: some arrays of a chunk's counts, and some as large as the predictions."""
    counts = min(rows * RANK_REPLICATES, max(rows, _COUNTS))
    return 8 * (counts * (7 + targets) + 8 * rows * layers * targets)


def _interval(value: np.ndarray, drawn: list[np.ndarray], level: float, groups: int | None) -> Interval:
    """The interval of Interval's docstring, from replicates drawn over rows, or over so many groups.

    Percentiles over few groups lie too low: a group that is drawn twice does not vary about itself, so that the target
    of a resample varies less than that of the rows. Student's t is exact for means of one size that vary normally.

    Source: Efron & Tibshirani (1993), "An Introduction to the Bootstrap", chapter 12; Hesterberg (2015), "What Teachers
      Should Know About the Bootstrap", for groups / (groups - 1), the factor by which the replicates vary too little.
    """
    if not drawn:
        return Interval(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    tail = (1 - level) / 2
    replicates = np.concatenate(drawn)
    enough = np.isfinite(replicates).mean(axis=0) >= _DEFINED
    replicates = np.where(enough, replicates, 0)
    if groups is None:
        low, high = np.nanquantile(replicates, [tail, 1 - tail], axis=0)
    else:
        half = stdtrit(groups - 1, 1 - tail) * np.sqrt(groups / (groups - 1)) * np.nanstd(replicates, axis=0)
        low, high = value - half, value + half
    return Interval(value, np.where(enough, low, np.nan), np.where(enough, high, np.nan))


def _difference(metrics: list[Callable], weights: np.ndarray) -> np.ndarray:
    """The metric of one set of predictions, or that of the first less that of the second."""
    return metrics[0](weights) if len(metrics) == 1 else metrics[0](weights) - metrics[1](weights)


def _check_shapes(y_true: np.ndarray, y_pred: np.ndarray) -> None:
    if y_true.ndim != 2 or not len(y_true) or y_pred.shape[-2:] != y_true.shape:
        raise InputError(f"y_true has shape {y_true.shape}, y_pred {y_pred.shape}; wanted [N, C] and [..., N, C].")


def _once(metric: Callable, y_true: np.ndarray, y_pred: np.ndarray) -> np.ndarray:
    y_true, y_pred = np.asarray(y_true, np.float64), np.asarray(y_pred, np.float64)
    _check_shapes(y_true, y_pred)
    layers = y_pred.reshape(-1, *y_true.shape)
    return metric(y_true, layers)(np.ones((1, len(y_true))))[0, :, :-1].reshape(*y_pred.shape[:-2], -1)


# Each takes y_true [N, C] and y_pred [L, N, C], does what resampling cannot change, and returns a function of weights
# [B, N]: scores [B, L, C + 1] with the mean over targets last, or errors in km [B, L].


def _weighted_sums(values: np.ndarray) -> Callable:
    """weights [B, N] -> [B, L, C], sums over rows of values [L, N, C]."""
    layers, rows, targets = values.shape
    flat = np.ascontiguousarray(values.transpose(1, 0, 2).reshape(rows, layers * targets))
    return lambda weights: (weights @ flat).reshape(len(weights), layers, targets)


def _with_mean(scores: np.ndarray) -> np.ndarray:
    return np.concatenate([scores, scores.mean(axis=-1, keepdims=True)], axis=-1)


def _r2(y_true, y_pred):
    errors = _weighted_sums((y_true - y_pred) ** 2)
    varies = np.ptp(y_true, axis=0) > 0
    centred = y_true - y_true.mean(0)  # so that the difference of sums below does not cancel

    def of(weights):
        squares = weights @ centred**2
        total = squares - (weights @ centred) ** 2 / weights.sum(1, keepdims=True)
        # Of equal values rounding leaves some 1e-16 of the squares, not 0.
        return _with_mean(1 - errors(weights) / np.where(varies & (total > 1e-12 * squares), total, np.nan)[:, None])

    return of


def _mae(y_true, y_pred):
    errors = _weighted_sums(np.abs(y_true - y_pred))
    return lambda weights: _with_mean(errors(weights) / weights.sum(1)[:, None, None])


def _km_mean(y_true, y_pred):
    errors = _weighted_sums(great_circle_km(y_pred, y_true)[..., None])
    return lambda weights: errors(weights)[..., 0] / weights.sum(1)[:, None]


def _km_median(y_true, y_pred):
    medians = [_median(error) for error in great_circle_km(y_pred, y_true)]
    return lambda weights: np.stack([median(weights) for median in medians], axis=1)


def _median(values: np.ndarray) -> Callable:
    """weights (counts) [B, N] -> [B] median of values [N]."""
    order = np.argsort(values)
    ascending = values[order]

    def of(weights):
        upto = np.cumsum(weights[:, order], axis=1)
        middle = (upto[:, -1:] - 1) / 2
        low, high = (np.sum(upto <= place, axis=1) for place in (np.floor(middle), np.ceil(middle)))
        return (ascending[low] + ascending[high]) / 2

    return of


def _spearman(y_true, y_pred):
    true_ranks = [_mid_ranks(column) for column in y_true.T]
    pred_ranks = [[_mid_ranks(column) for column in layer.T] for layer in y_pred]

    def of(weights):
        true = [ranks(weights) for ranks in true_ranks]
        scores = [
            [_correlation(weights, t, r(weights)) for t, r in zip(true, layer, strict=True)] for layer in pred_ranks
        ]
        return _with_mean(np.moveaxis(np.array(scores), -1, 0))

    return of


def _mid_ranks(values: np.ndarray) -> Callable:
    """weights (counts) [B, N] -> [B, N] mid-rank of each value in the resample, less the mean rank."""
    _, tie = np.unique(values, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(tie[order])), len(values) - 1)

    def of(weights):
        upto = np.cumsum(weights[:, order], axis=1)[:, ends]
        below = np.concatenate([np.zeros((len(weights), 1)), upto[:, :-1]], axis=1)
        return ((below + upto - upto[:, -1:]) / 2)[:, tie]

    return of


def _correlation(weights: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[B] weighted correlation of a, b [B, N] whose weighted means are 0."""
    weighted = weights * a
    product, a_squares = np.einsum("bn,bn->b", weighted, b), np.einsum("bn,bn->b", weighted, a)
    scale = np.sqrt(a_squares * np.einsum("bn,bn,bn->b", weights, b, b))
    return product / np.where(scale > 0, scale, np.nan)


_METRICS = {"r2": _r2, "spearman": _spearman, "mae": _mae, "error_km_median": _km_median, "error_km_mean": _km_mean}
