"""Small worlds whose answer is known."""

import numpy as np

from jaxprobe.data.table import EntityTable


def make_table(targets, groups=None, is_test=None, texts=None, places=False):
    """A table of these targets [N, C]; every fourth row is for testing."""
    rows, count = targets.shape
    names = ("latitude", "longitude") if places else tuple(f"target{i}" for i in range(count))
    return EntityTable(
        "world",
        tuple(texts or (f"thing {i}" for i in range(rows))),
        targets,
        names,
        ("degree" if places else "",) * count,
        np.arange(rows) % 4 == 0 if is_test is None else is_test,
        {name: np.asarray(labels, object) for name, labels in (groups or {}).items()},
    )


def letters(codes):
    """Group labels "a", "b", ... of whole numbers."""
    return np.array([chr(97 + code) for code in codes], object)


def planted(rng, rows=300, width=10, noise=0.3, groups=4):
    """(state that is a linear map of two targets with noise, table with groups that say nothing)."""
    targets = rng.normal(size=(rows, 2))
    state = targets @ rng.normal(size=(2, width)) + noise * rng.normal(size=(rows, width))
    return state.astype(np.float32), make_table(targets, {"kind": letters(rng.integers(groups, size=rows))})


def select(frame, **wanted):
    """The one row of a tidy table with these cells."""
    for column, cell in wanted.items():
        frame = frame[frame[column] == cell]
    assert len(frame) == 1, f"{len(frame)} rows of {wanted}"
    return frame.iloc[0]
