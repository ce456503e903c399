"""Reading stored hidden states: one state at a time, in the order of the table, checked on every read."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from jaxprobe.errors import InputError
from jaxprobe.extract.store.layout import (
    DamagedError,
    Manifest,
    canonical,
    checksum,
    is_complete,
    read_manifest,
    remedy,
)
from jaxprobe.extract.store.shards import ShardDamage, read_leaf
from jaxprobe.host.paths import AnyPath, absolute

READERS = 4  # shards read at once; each needs memory for one state of one shard


def verify_shards(path: AnyPath, manifest: Manifest, shards: Iterable[int]) -> None:
    """Reads all of the shards. Raises DamagedError, which names the damaged ones."""

    def verify(shard: int) -> None:
        index = _read_index(path, manifest, shard)
        for state in manifest.states:
            _read_state(path, manifest, index, shard, state)

    _for_each_shard(path, verify, shards)


def open_activations(path: str | PathLike) -> "Activations":
    """The finished store at ``path``, to read from. Nothing is locked and nothing is written.

    Raises:
      InputError: no store, an unfinished or a newer one; DamagedError: a damaged one.
    """
    path = absolute(path)
    manifest = read_manifest(path)
    # Not more are looked for than there are entries: the number of shards is what a file says.
    entries = sum(1 for _ in path.iterdir())
    complete = sum(is_complete(path, shard) for shard in range(min(manifest.shards, entries)))
    if complete < manifest.shards:
        raise InputError(
            f"{path} is not finished: {manifest.shards - complete} of {manifest.shards} shards are missing. "
            f"{remedy(path)}"
        )
    return Activations(path, manifest)


class Activations(Mapping[str, np.ndarray]):
    """Stored hidden states: ``view["12"]`` is a NumPy array [N, D] in table order, in the dtype it is stored in.

    Neurons (``view["mlp.12"]``) are [N, F]: ``width_of`` says how wide a state is, ``shape`` is that of the others.
    bfloat16 comes as ``ml_dtypes.bfloat16``. Each access reads from disk one state of one shard at a time, compares
    its checksum, and raises DamagedError (an InputError) that names every damaged shard.
    """

    def __init__(self, path: AnyPath, manifest: Manifest):
        self.path = path
        self.manifest = manifest
        self.states = manifest.states
        self.shape = (manifest.rows, manifest.width)
        self.dtype = np.dtype(manifest.dtype)
        self.width_of = manifest.width_of
        self._index: dict[int, _Index] = {}

        def read_index(shard: int) -> None:
            self._index[shard] = _read_index(path, manifest, shard)

        _for_each_shard(path, read_index, range(manifest.shards))
        rows = np.concatenate([self._index[shard].rows for shard in range(manifest.shards)])
        if not np.array_equal(np.sort(rows), np.arange(manifest.rows)):
            raise DamagedError(f"{path} lacks rows of 0 to {manifest.rows - 1}, or has some twice. Run with --repair.")
        self._shard_of_row = np.empty(len(rows), np.int64)
        self._place_of_row = np.empty(len(rows), np.int64)
        for shard, index in self._index.items():
            self._shard_of_row[index.rows] = shard
            self._place_of_row[index.rows] = np.arange(len(index.rows))

    def __getitem__(self, state: str) -> np.ndarray:
        return self.rows(state, slice(None))

    def __iter__(self) -> Iterator[str]:
        return iter(self.states)

    def __len__(self) -> int:
        return len(self.states)

    def __contains__(self, state: object) -> bool:
        return state in self.states

    def rows(self, state: str, rows: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """A state of some table rows, [n, D], in the order asked for.

        Args:
          rows: a slice, row numbers or a mask, as NumPy would take them. A shard is read where it holds one of them.
        """
        if state not in self.states:
            raise KeyError(f"{state!r} is not in {self.path}; it holds {', '.join(self.states)}")
        rows = np.arange(self.shape[0])[rows]
        shards = self._shard_of_row[rows]
        result = np.empty((len(rows), self.width_of(state)), self.dtype)

        def read(shard: int) -> None:
            values = _read_state(self.path, self.manifest, self._index[shard], shard, state)
            wanted = np.flatnonzero(shards == shard)
            result[wanted] = values[self._place_of_row[rows[wanted]]]

        _for_each_shard(self.path, read, np.unique(shards).tolist())
        return result

    def read(self, states: str | Sequence[str], sharding: Sharding | None = None) -> jax.Array:
        """One state as [N, D], or several as [L, N, D], put where ``sharding`` says (default: the first device).

        With several states each device's part is read by itself, so host memory holds one part at a time; layers
        spread over devices are each read once.
        """
        if sharding is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        if isinstance(states, str):
            values = self[states]
            return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

        def part(index: tuple[slice, ...]) -> np.ndarray:
            layers, rows, width = index
            return np.stack([self.rows(state, rows)[:, width] for state in states[layers]])

        widths = {self.width_of(state) for state in states}
        if len(widths) > 1:
            raise InputError(f"States of widths {', '.join(map(str, sorted(widths)))} are no array. Read one.")
        return jax.make_array_from_callback((len(states), self.shape[0], *widths), sharding, part)


class _Index(NamedTuple):
    rows: np.ndarray
    checksums: dict[str, int]


def _read_index(path: AnyPath, manifest: Manifest, shard: int) -> _Index:
    rows, values = read_leaf(path, shard, "rows"), read_leaf(path, shard, "checksums")
    seed = zlib.crc32(canonical(manifest.key()))
    for name, leaf, expected in (("checksums", values[:-1], values[-1]), ("rows", rows, values[0])):
        if checksum(seed, shard, name, leaf) != expected:
            raise ShardDamage(f"the checksum of {name!r} does not match")
    return _Index(rows, dict(zip(manifest.states, values[1:-1].tolist(), strict=True)))


def _read_state(path: AnyPath, manifest: Manifest, index: _Index, shard: int, state: str) -> np.ndarray:
    values = read_leaf(path, shard, state)
    found = (values.shape, values.dtype.name)
    expected = ((len(index.rows), manifest.width_of(state)), manifest.dtype)
    if found != expected:
        raise ShardDamage(f"state {state!r} is {found}, not {expected}")
    if checksum(zlib.crc32(canonical(manifest.key())), shard, state, values) != index.checksums[state]:
        raise ShardDamage(f"the checksum of state {state!r} does not match")
    return values


def _for_each_shard(path: AnyPath, function: Callable[[int], None], shards: Iterable[int]) -> None:
    """Calls ``function`` for several shards at a time and collects the damage that it finds."""
    with ThreadPoolExecutor(READERS) as pool:
        calls = [(shard, pool.submit(function, shard)) for shard in shards]
    damaged = {shard: error for shard, call in calls if isinstance(error := call.exception(), ShardDamage)}
    for _, call in calls:
        if call.exception() and not isinstance(call.exception(), ShardDamage):
            raise call.exception()
    if damaged:
        found = "; ".join(f"shard {shard}: {error}" for shard, error in damaged.items())
        raise DamagedError(
            f"{path} is damaged ({found}). {remedy(path, '--repair')}",
            tuple(damaged),
        )
