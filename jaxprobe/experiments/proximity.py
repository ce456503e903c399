"""Proximity error: how many other things a probe puts nearer to a thing's true place than the thing itself."""

import numpy as np

from jaxprobe.data.sphere import unit_vectors

_CELLS = 2**22  # of a block of the comparison: 34 MB, whatever the number of rows


def proximity_error(
    predicted: np.ndarray, truth: np.ndarray, rows: np.ndarray | None = None, *, places: bool = False
) -> np.ndarray:
    """For each thing the share of the others whose prediction is nearer to its true target than its own prediction is.

    0 is best; 0.5 is what predictions that know nothing give. Of those that are equally near half count.

    Args:
      predicted: [M, C] predictions; truth: [M, C] targets, both in one unit for all C.
      rows: the things to look at, among all M that they are compared with; all of them by default.
      places: targets are (latitude, longitude) in degrees, and nearness is over the sphere.

    Returns:
      [rows] shares.
    Source: Gurnee & Tegmark (2023), section 3.3, whose code holds all M x M distances and has latitude and longitude
      exchanged.
    """
    rows = np.arange(len(truth)) if rows is None else np.arange(len(truth))[rows]
    if places:
        predicted, truth = (unit_vectors(values[:, 0], values[:, 1]) for values in (predicted, truth))
    shares = np.empty(len(rows))
    size = max(1, _CELLS // len(predicted))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        distance = _squares(predicted, truth[block])
        own = distance[np.arange(len(block)), block]
        nearer, tied = np.sum(distance < own[:, None], axis=1), np.sum(distance == own[:, None], axis=1) - 1
        shares[start : start + size] = (nearer + tied / 2) / max(1, len(predicted) - 1)
    return shares


def _squares(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[n, M] squared distances, summed over targets one at a time: a product would lose near places to rounding."""
    distance = np.zeros((len(truth), len(predicted)))
    for p, t in zip(predicted.T, truth.T, strict=True):
        distance += (p[None] - t[:, None]) ** 2
    return distance
