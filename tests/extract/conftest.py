"""A small store with known content, for the tests of what writes, reads and exports it."""

from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from jaxprobe.extract.store.writer import ActivationStore


class Stored(NamedTuple):
    """What is to be stored: the arguments of ``ActivationStore.open`` and, in table order, the truth."""

    arguments: dict[str, Any]
    truth: dict[str, np.ndarray]

    def open(self, path: Path, **changes: Any) -> ActivationStore:
        return ActivationStore.open(path, **(self.arguments | changes))

    def shard(self, index: int) -> dict[str, np.ndarray]:
        return {state: values[self.arguments["rows"][index]] for state, values in self.truth.items()}

    def fill(self, path: Path) -> Path:
        with self.open(path) as store:
            for index in store.missing:
                store.write(index, self.shard(index))
        assert store.complete
        return path


def make_stored(
    *,
    rows: int = 50,
    shard_rows: int = 8,
    width: int = 12,
    states=("embed", "0", "1"),
    dtype: str = "float32",
    widths=None,
) -> Stored:
    rng = np.random.default_rng(0)
    order = rng.permutation(rows)
    widths = widths or {}
    values = [rng.standard_normal((rows, widths.get(state, width))).astype(np.dtype(dtype)) for state in states]
    arguments = {
        "settings": {"model": "tiny", "prompt": {"name": "empty", "template": "{}"}, "layers": [0, 1]},
        "rows": [order[i : i + shard_rows] for i in range(0, rows, shard_rows)],
        "states": states,
        "width": width,
        "dtype": dtype,
        "widths": widths,
    }
    return Stored(arguments, dict(zip(states, values, strict=True)))


@pytest.fixture
def stored() -> Stored:
    return make_stored()


@pytest.fixture(params=["float32", "bfloat16"])
def stored_in_each_dtype(request: pytest.FixtureRequest) -> Stored:
    assert ml_dtypes.bfloat16  # registers the dtype's name
    return make_stored(dtype=request.param)


@pytest.fixture(name="make_stored")
def make_stored_fixture():
    """The function itself: test modules can't import one another."""
    return make_stored
