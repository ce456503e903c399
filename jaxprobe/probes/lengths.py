"""Rows whose state is far longer than the others': one of them can decide a fit and its score."""

from collections.abc import Sequence

import numpy as np

LONG = 10.0  # times the median length; ordinary states of one site stay within 2
_ROWS = 8192  # at a time, widened


def row_lengths(x: np.ndarray) -> np.ndarray:
    """[N] Euclidean length of each row of x [N, D], in float64."""
    parts = [np.linalg.norm(np.asarray(x[i : i + _ROWS], np.float64), axis=1) for i in range(0, len(x), _ROWS)]
    return np.concatenate(parts) if parts else np.empty(0)


def length_notes(
    lengths: np.ndarray, states: Sequence[str], headline: str, texts: Sequence[str], rows: np.ndarray
) -> tuple[str, ...]:
    """A sentence about the rows longer than LONG times the median, where there are some.

    Args:
      lengths: [L, M] of the states' rows.
      states: L names; headline: the one that the result rests on.
      texts: of all N rows; rows: [M] the rows that ``lengths`` are of.
    """
    ratio = lengths / np.maximum(np.median(lengths, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    is_long = ratio > LONG
    if not is_long.any():
        return ()
    worst, at = ratio.max(axis=0), ratio.argmax(axis=0)
    found = np.flatnonzero(is_long.any(axis=0))
    found = found[np.argsort(-worst[found], kind="stable")]
    shown = [
        f"row {rows[i]} {texts[rows[i]][:60]!r}, {worst[i]:,.0f} times at state {states[at[i]]}" for i in found[:3]
    ]
    where = "the headline layer among them" if is_long[list(states).index(headline)].any() else "not the headline layer"
    return (
        f"Warning: rows with a state more than {LONG:.0f} times as long as the median row's: {len(found):,} "
        f"({'; '.join(shown)}{'; ...' if len(found) > 3 else ''}), in {is_long.any(axis=1).sum()} of {len(states)} "
        f"states, {where}. One such row can decide R2: look at Spearman and the median error, or leave it out.",
    )
