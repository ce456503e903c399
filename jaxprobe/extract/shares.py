"""Which processes compute which shards: each takes whole shards, so a shard's rows never cross between machines.

The devices along the bin axis (mesh axes ``data`` and ``fsdp``) fall into shares, one for each process. In a step every
share runs bins of its own shard; a set of shards that are computed side by side is called a wave. Processes that hold
the same bins (``model`` spans them) make up one share and take turns at writing its shards.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxprobe.errors import InputError
from jaxprobe.extract.trie import Batch, Shard
from jaxprobe.mesh import spec


class Shares(NamedTuple):
    """How the processes of a mesh share the bins of a step, as this one sees it.

    Attributes:
      count: shares, each with bins of its own.
      index: the share of this process.
      members: processes of a share.
      member: this one's place among them.
      parts: where this share's devices are along the bin axis, counted in devices.
    """

    count: int
    index: int
    members: int
    member: int
    parts: tuple[int, ...]

    def writes(self, shard: int) -> bool:
        """Whether this process, of those that compute a shard, is the one that writes it."""
        return shard // self.count % self.members == self.member


@functools.lru_cache(maxsize=4)
def _groups(mesh: Mesh) -> dict[tuple[int, ...], list[int]]:
    """Parts of the bin axis -> the processes whose devices hold these, in order.

    Raises:
      InputError: processes without devices in the mesh, or whose parts overlap without being the same.
    """
    grid = mesh.devices.reshape(-1, mesh.shape["model"])  # as the mesh lays out B: `data` before `fsdp`
    held: dict[int, set[int]] = {}
    for part, devices in enumerate(grid):
        for device in devices:
            held.setdefault(device.process_index, set()).add(part)
    groups: dict[tuple[int, ...], list[int]] = {}
    for process in sorted(held):
        groups.setdefault(tuple(sorted(held[process])), []).append(process)
    sizes = ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    idle = set(range(jax.process_count())) - set(held)
    if idle and set(held) != {jax.process_index()}:  # a process may have a mesh of its own
        raise InputError(
            f"Mesh {sizes} has no device of process {', '.join(map(str, sorted(idle)))}. Start fewer processes, or use "
            f"all {jax.device_count()} devices."
        )
    parts = list(itertools.chain(*groups))
    if len(parts) != len(set(parts)) or len({(len(key), len(value)) for key, value in groups.items()}) > 1:
        each = mesh.size // len(held)
        raise InputError(
            f"Mesh {sizes} cuts the {len(held)} processes of about {each} devices into unlike shares of the bins. "
            f"Use a size of model that divides {each}, or that {each} divides."
        )
    return dict(sorted(groups.items()))


def share_count(mesh: Mesh) -> int:
    """Shards that are computed side by side."""
    return len(_groups(mesh))


def devices_by_share(mesh: Mesh) -> np.ndarray:
    """The mesh's devices [n, shares], a column for each share."""
    grid = mesh.devices.reshape(-1, mesh.shape["model"])
    return np.stack([grid[list(parts)].ravel() for parts in _groups(mesh)], axis=1)


def find_shares(mesh: Mesh) -> Shares:
    """The shares of a mesh, of which this process has one."""
    groups = _groups(mesh)
    for index, (parts, processes) in enumerate(groups.items()):
        if jax.process_index() in processes:
            return Shares(len(groups), index, len(processes), processes.index(jax.process_index()), parts)
    raise ValueError("this process has no device in the mesh")


def steps(shards: Sequence[Shard], count: int) -> Iterator[tuple[Batch | None, ...]]:
    """The batches of a wave side by side, all of one T: one for each share, None where its shard has no more."""
    every = [shard.batches for shard in shards] + [()] * (count - len(shards))
    for slots in sorted({batch.tokens.shape[1] for batches in every for batch in batches}):
        yield from itertools.zip_longest(
            *([batch for batch in batches if batch.tokens.shape[1] == slots] for batches in every)
        )


def waves(shards: Sequence[int], count: int) -> Iterator[tuple[int, ...]]:
    """Shards in order, ``count`` at a time; the last wave may have fewer."""
    for first in range(0, len(shards), count):
        yield tuple(shards[first : first + count])


def put_bins(fields: Any, mesh: Mesh) -> Any:
    """Arrays [B, ...] of this process's share as its part of arrays [shares x B, ...] over the mesh."""
    sharding = NamedSharding(mesh, spec("BT"))
    if sharding.is_fully_addressable:
        return jax.device_put(fields, sharding)
    shares = find_shares(mesh)

    def put(field: np.ndarray) -> jax.Array:
        each = len(field) // len(shares.parts)

        def of_device(index: tuple[slice, ...]) -> np.ndarray:
            first = each * shares.parts.index((index[0].start or 0) // each)
            return field[first : first + each]

        return jax.make_array_from_callback((len(field) * shares.count, *field.shape[1:]), sharding, of_device)

    return jax.tree.map(put, fields)


def put_alike(arrays: Any, sharding: NamedSharding) -> Any:
    """Arrays that every process has whole, put where ``sharding`` says."""
    return jax.tree.map(lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__), arrays)


def take_rows(rows: jax.Array) -> np.ndarray:
    """This process's share [L, B, W, D] of wanted rows [L, shares x B, W, D], on the host; all processes call it."""
    if rows.is_fully_addressable:
        return np.asarray(rows)
    mesh = cast(NamedSharding, rows.sharding).mesh
    shares = find_shares(mesh)
    taken = np.empty((rows.shape[0], rows.shape[1] // shares.count, *rows.shape[2:]), rows.dtype)
    if shares.members == 1:
        _fill(taken, rows, shares)
    else:
        # Each process has some columns of W only. One state at a time goes to all devices of its share: together they
        # would not fit there.
        for state in range(len(rows)):
            _fill(taken[state : state + 1], _whole_bins(mesh)(rows, state), shares)
    return taken


def _fill(taken: np.ndarray, rows: jax.Array, shares: Shares) -> None:
    """Copies what this process's devices hold of [L, shares x B, W, D] to [L, B, W, D]."""
    each = taken.shape[1] // len(shares.parts)
    # Devices along ``model`` hold copies where W is whole.
    pieces = {(piece.index[1].start or 0, piece.index[2].start or 0): piece for piece in rows.addressable_shards}
    for (bins, _), piece in pieces.items():
        first = each * shares.parts.index(bins // each)
        taken[:, first : first + each, piece.index[2]] = piece.data


@functools.lru_cache(maxsize=4)
def _whole_bins(mesh: Mesh):
    sharding = NamedSharding(mesh, spec("LBWD", "model"))
    return jax.jit(lambda rows, state: jax.lax.dynamic_slice_in_dim(rows, state, 1), out_shardings=sharding)
