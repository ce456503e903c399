"""How the PyTorch baselines cut a table into batches. NumPy only."""

from typing import NamedTuple

import numpy as np

PAPER_BATCH = 128  # the default of the paper's code


class Batch(NamedTuple):
    """n sequences, padded on the right to the longest; padding follows every real token, so causality hides it."""

    tokens: np.ndarray  # [n, T] int64
    last: np.ndarray  # [n] the column of each sequence's last token
    rows: np.ndarray  # [E] table rows that the batch completes: more than n where names repeat
    sequence: np.ndarray  # [E] for each of them, its sequence


def in_file_order(ids: np.ndarray, starts: np.ndarray, size: int) -> list[Batch]:
    """Batches of ``size`` in the table's order, each clipped to its longest sequence."""
    rows = np.arange(len(starts) - 1)
    return [
        _pad(ids, starts[part], starts[part + 1], part, np.arange(len(part)))
        for part in np.split(rows, range(size, len(rows), size))
    ]


def by_length(ids: np.ndarray, starts: np.ndarray, size: int, skip: int = 0) -> list[Batch]:
    """Batches of ``size`` distinct sequences, shortest first; the first ``skip`` tokens, which all share, left out."""
    raw, edges = ids.tobytes(), starts * ids.itemsize
    sequences: dict[bytes, list[int]] = {}
    for row, (begin, end) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        sequences.setdefault(raw[begin:end], []).append(row)
    same = sorted(sequences.values(), key=lambda rows: starts[rows[0] + 1] - starts[rows[0]])
    batches = []
    for part in (same[first : first + size] for first in range(0, len(same), size)):
        one = np.array([rows[0] for rows in part])
        sequence = np.repeat(np.arange(len(part)), [len(rows) for rows in part])
        batches.append(_pad(ids, starts[one] + skip, starts[one + 1], np.concatenate(part), sequence))
    return batches


def _pad(ids: np.ndarray, begin: np.ndarray, end: np.ndarray, rows: np.ndarray, sequence: np.ndarray) -> Batch:
    lengths = end - begin
    tokens = np.zeros((len(begin), lengths.max()), np.int64)
    for line, (first, length) in enumerate(zip(begin, lengths, strict=True)):
        tokens[line, :length] = ids[first : first + length]
    return Batch(tokens, lengths - 1, np.asarray(rows), sequence)


def common_prefix(ids: np.ndarray, starts: np.ndarray) -> int:
    """Tokens that every sequence begins with; at least one token of each is left over."""
    shortest = int(np.diff(starts).min())
    heads = ids[starts[:-1, None] + np.arange(shortest - 1)[None, :]]
    differs = (heads != heads[:1]).any(0)
    return int(differs.argmax()) if differs.any() else shortest - 1
