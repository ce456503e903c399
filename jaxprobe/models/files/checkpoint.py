"""What the loader asks of a checkpoint: tensors by name, read in slices.

Each read maps its tensor anew and lets go of it afterwards: a mapping that stays open would keep every page that was
ever read resident, and by the last tensor the process would hold the checkpoint a second time. From a bucket the rows
that are wanted of a tensor are fetched.
"""

import functools
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, is_local, read_ranges
from jaxprobe.models.config import ModelConfig


class Extent(NamedTuple):
    """Where a tensor's bytes lie, and what they are."""

    path: AnyPath
    offset: int
    size: int  # bytes
    kind: str  # dtype, or kind of quantisation


class Checkpoint(Protocol):
    """Tensors by name, read in slices."""

    is_gguf: bool
    files: tuple[AnyPath, ...]

    def config(self) -> ModelConfig: ...
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    def extents(self) -> Mapping[str, Extent]: ...
    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray: ...


class StoredTensor(NamedTuple):
    """Where a tensor's numbers lie, one after another in C order."""

    path: AnyPath
    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """A view of the file, whose pages are let go with the array; or of the rows that were fetched."""
        if is_local(self.path):
            return np.asarray(np.memmap(self.path, self.dtype, "r", self.offset, self.shape)[index])
        first, stop, _ = index[0].indices(self.shape[0])
        row = math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize
        data = _fetch(self.path, self.offset + first * row, self.offset + stop * row)
        return np.frombuffer(data, self.dtype).reshape(stop - first, *self.shape[1:])[slice(None), *index[1:]]


@functools.lru_cache(maxsize=1)
def _fetch(path: AnyPath, start: int, stop: int) -> bytes:
    """Bytes of an object. The last ones are kept: devices that share a tensor by columns ask for the same rows."""
    (data,) = read_ranges(path, [(start, stop)])
    return data


def read_json(path: AnyPath) -> Any:
    """A JSON file from whoever wrote it. Raises InputError where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as JSON ({error}). Download it again.") from error
