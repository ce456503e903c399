"""Streaming: what ridge needs to know of the training rows, summed up while the forward runs, with no row kept.

For every state and every segment of rows (a fold, a hold-out group): count, mean, x'x, x'y and y'y. Memory is one
packed D x D matrix for each state and segment (probes/packed.py), however many rows there are.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Float64, Int

from jaxprobe.probes.moments import largest_block, principal_axes, rotate, rotation
from jaxprobe.probes.packed import Packing, add_to, opened, packed_product, packing, unpack
from jaxprobe.probes.solve import Sums

_ROW_MULTIPLE = 8
# Of one state that are added at a time: little beside a large model's sums, and enough for the products to be worth it.
NUMBERS_AT_ONCE = 2**23


def moments_size(states: int, segments: int, width: int, targets: int, devices: int = 1) -> int:
    """Bytes that the moments take on each device."""
    return 4 * -(-states // devices) * segments * math.prod(packing(width, targets).words)


def wave_size(states: int, rows: int, width: int, itemsize: int, devices: int = 1, shares: int = 1) -> int:
    """Bytes that ``rows`` rows at once (see `pieces`) take on each device on their way to the sums.

    Those that are added; and of several shares those of all, as each device sends and as it receives them.
    """
    shard = -(-states // devices) * rows * width * itemsize
    return shard * (1 + 2 * shares) if shares > 1 else shard


def pieces(rows: Int[np.ndarray, " n"], width: int) -> list[Int[np.ndarray, " m"]]:
    """A shard's rows as they are added: cut in the fewest parts of about one size."""
    return np.array_split(rows, max(1, -(-len(rows) * width // NUMBERS_AT_ONCE)))


def _cut(x: np.ndarray | Array) -> list[np.ndarray | Array]:
    """A shard's states [L, n, D], cut as its rows are."""
    ends = np.cumsum([0, *map(len, pieces(np.arange(x.shape[1]), x.shape[2]))])
    return [x[:, first:end] for first, end in itertools.pairwise(ends)]


class MomentStream:
    """Moments of the rows of a table that pass by shard by shard.

    Rows are shifted by a pilot mean (that of the first of them), so that states whose mean is thousands of times their
    spread keep their digits; and a state's largest dimensions are rotated among themselves by the pilot's principal
    axes, as massive dimensions that move together would leave none to what they differ by. Products are float32 at the
    highest matmul precision; sums carry their rounding error along, so they are as exact for a million rows as for a
    thousand.

    States are spread over devices. A shard's rows are sent to the device that has the state: n x D numbers, far fewer
    than the D x D sums that a reduction over devices would move, and the result does not depend on their number.

    Attributes:
      states: L state names.
      segments: S names, in the order of the leading axis of what ``moments`` returns.
    """

    def __init__(
        self,
        states: Sequence[str],
        width: int,
        shard_rows: Sequence[Int[np.ndarray, " n"]],
        segments: Mapping[str, Int[np.ndarray, " m"]],
        y: Float64[np.ndarray, "N C"],
        devices: Sequence[jax.Device] | np.ndarray | None = None,
    ):
        """Makes room for the sums.

        Args:
          width: D.
          shard_rows: table rows of every shard, as the plan has them.
          segments: name -> table rows. They may overlap; a row in none of them is not used.
          y: targets of all table rows, in their own unit; not looked at in rows of no segment.
          devices: which share the states; default: all. [n, shares] where processes compute shards side by side.
        """
        self.states = tuple(states)
        self.segments = tuple(segments)
        self._y = _Targets(segments, y)
        self._pieces = [pieces(rows, width) for rows in shard_rows]
        self._most = max(len(piece) for parts in self._pieces for piece in parts)
        self._targets = y.shape[1]
        of_pieces = iter(members([piece for parts in self._pieces for piece in parts], list(segments.values())))
        self._members = [[next(of_pieces) for _ in parts] for parts in self._pieces]
        grid = np.asarray(jax.devices() if devices is None else devices)
        grid = grid if grid.ndim == 2 else grid[:, None]
        self._mesh, self._layers = layers_on(list(grid.flat), len(self.states))
        self._by_share = Mesh(grid, ("device", "share"), axis_types=(AxisType.Auto,) * 2)
        self._sharding = NamedSharding(self._mesh, P("layer"))
        shape = (self._layers, len(segments), *packing(width, y.shape[1]).words)
        self._sums = jax.jit(lambda: jnp.zeros(shape, jnp.uint32), out_shardings=self._sharding)()
        self._pilot: Pilot | None = None

    def add(self, shard: int, x: Float[np.ndarray, "L n D"] | Float[Array, "L n D"]) -> None:
        """Adds a shard's rows, each shard once.

        Args:
          x: the states of the shard's rows, in the order of ``states``; on the host, or on the devices in any sharding.
        """
        rows = sum(map(len, self._pieces[shard]))
        if x.shape[:2] != (len(self.states), rows):
            raise ValueError(f"shard {shard} is {x.shape}, not {len(self.states)} states of {rows} rows")
        for piece, part in enumerate(_cut(x)):
            self._add(shard, piece, self._spread(part))

    def add_wave(self, wave: Sequence[int], x: Float[np.ndarray, "L n D"]) -> None:
        """Adds the shards that several processes computed side by side; all of them call it.

        Args:
          wave: the shards, one for each share; the last shares may have none.
          x: the states of this process's shard, [L, 0, D] where it has none.
        """
        if self._by_share.shape["share"] == 1:
            self.add(wave[0], x)
            return
        own = _cut(x)
        for piece in range(max(len(self._pieces[shard]) for shard in wave)):
            every = self._exchange(own[piece] if piece < len(own) else x[:, :0])
            for place, shard in enumerate(wave):
                if piece < len(self._pieces[shard]):
                    self._add(shard, piece, _pick(self._sharding)(every, place))

    def _add(self, shard: int, piece: int, x: Array) -> None:
        rows = self._pieces[shard][piece]
        if self._pilot is None:
            self._pilot = self._find_pilot(x, len(rows))
        y = np.zeros((x.shape[1], self._targets), np.float32)
        y[: len(rows)] = self._y.shifted(rows)
        self._sums = compiled_add(self._mesh)(self._sums, x, self._pilot, y, self._members[shard][piece])

    def moments(self, state: str) -> dict[str, Float64[np.ndarray, "..."]]:
        """One state's moments of every segment, with a leading segment axis, in float64.

        Returns:
          count [S]; x_shift [S, D], y_shift [S, C]; and about these shifts x_sum [S, D], y_sum [S, C], xx [S, D, D],
          xy [S, D, C], yy [S, C] (sums, not means).
        """
        if self._pilot is None:
            raise ValueError("no shard was added")
        layer = self.states.index(state)
        words = _one_layer(self._sums, layer)
        shift, top, axes = (_one_layer(leaf, layer) for leaf in self._pilot)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            parts = _opened(packing(len(shift), self._targets))(words)
        # Exact: a float64 holds the sum of two float32 of which one is below the other's last digit.
        xx, beside = (np.add(*part, dtype=np.float64) for part in zip(*parts, strict=True))
        # Back to the dimensions of the model, where float64 has digits enough; by the inverse, as rounding left axes
        # that are orthogonal to seven digits.
        back = np.linalg.inv(rotation(axes))
        xx[:, top], beside[:, top] = back.T @ xx[:, top], back.T @ beside[:, top]
        xx[:, :, top] = xx[:, :, top] @ back
        return self._y.moments() | {
            "x_shift": np.broadcast_to(shift.astype(np.float64), (len(self.segments), len(shift))),
            "x_sum": beside[:, :, self._targets],
            "xx": xx,
            "xy": beside[:, :, : self._targets],
        }

    def on_devices(self) -> Sums:
        """The sums of this process's states where they are, in the order of ``states_here`` and then what fills up."""
        if self._pilot is None:
            raise ValueError("no shard was added")
        own = sorted(self._sums.addressable_shards, key=lambda part: part.index[0].indices(self._layers)[0])
        mesh, _ = layers_on([part.device for part in own], len(self.states))
        sharding = NamedSharding(mesh, P("layer"))

        def here(array: Array) -> Array:
            of = {piece.device: piece.data for piece in array.addressable_shards}
            parts = [of[part.device] for part in own]
            shape = (sum(map(len, parts)), *array.shape[1:])
            return jax.make_array_from_single_device_arrays(shape, sharding, parts)

        y = self._y.moments()
        sums, pilot = here(self._sums), map(here, self._pilot)
        return Sums(mesh, sums, *pilot, y["count"], y["y_shift"][0], y["y_sum"], y["yy"])

    def _find_pilot(self, x: Array, rows: int) -> "Pilot":
        """From the first rows, of which ``rows`` rows are no filling; each process decomposes for its own devices."""
        shift, top, blocks = _survey(self._mesh)(x, rows)
        parts = [
            jax.device_put(principal_axes(np.asarray(piece.data)), piece.device) for piece in blocks.addressable_shards
        ]
        return Pilot(shift, top, jax.make_array_from_single_device_arrays(blocks.shape, blocks.sharding, parts))

    @property
    def states_here(self) -> list[str]:
        """The states whose sums are on devices of this process; all of them where it is alone."""
        here = [piece.index[0].indices(self._layers)[:2] for piece in self._sums.addressable_shards]
        return [state for i, state in enumerate(self.states) if any(first <= i < end for first, end in here)]

    def _exchange(self, x: np.ndarray) -> Array:
        """Every share's rows [shares, L, n, D]: from the process with its rows to the devices with the states."""
        shares, each = self._by_share.shape["share"], self._layers // self._by_share.shape["device"]
        shape = (shares, self._layers, self._most, x.shape[2])

        def part(index: tuple[slice, ...]) -> np.ndarray:
            here = x[index[1]]
            full = np.zeros((1, each, *shape[2:]), x.dtype)
            full[0, : len(here), : here.shape[1]] = here
            return full

        sent = jax.make_array_from_callback(shape, NamedSharding(self._by_share, P("share", "device")), part)
        return _received(NamedSharding(self._by_share, P(None, ("device", "share"))))(sent)

    def _spread(self, x: np.ndarray | Array) -> Array:
        """States to their devices; filled up with zeros to one shape for all parts and as many states for each."""
        shape = (self._layers, self._most, x.shape[2])
        if isinstance(x, jax.Array):
            widths = [(0, wanted - found) for wanted, found in zip(shape, x.shape, strict=True)]
            return jax.jit(functools.partial(jnp.pad, pad_width=widths), out_shardings=self._sharding)(x)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            here = x[index[0]]  # a view
            if here.shape == (shape[0] // self._mesh.size, *shape[1:]):
                return here
            full = np.zeros((shape[0] // self._mesh.size, *shape[1:]), x.dtype)
            full[: len(here), : here.shape[1]] = here
            return full

        return jax.make_array_from_callback(shape, self._sharding, part)


class Pilot(NamedTuple):
    """What each state's rows are shifted and rotated by, of the first of them."""

    shift: Float[Array, "L D"]
    top: Int[Array, "L k"]
    axes: Float[Array, "L k k"]


@functools.lru_cache(maxsize=4)
def _survey(mesh: Mesh):
    """The compiled pilot: (mean [L, D], largest dimensions [L, k], their products [L, k, k]) of the first rows."""

    def survey(x, rows):
        inside = (jnp.arange(x.shape[1]) < rows)[:, None]

        def one_layer(state):
            state = jnp.where(inside, state.astype(jnp.float32), 0)
            shift = jnp.sum(state, axis=0) / rows
            return shift, *largest_block(jnp.where(inside, state - shift[None], 0))

        return lax.map(one_layer, x)

    return jax.jit(jax.shard_map(survey, mesh=mesh, in_specs=(P("layer"), P()), out_specs=P("layer")))


def _one_layer(array: Array, layer: int) -> np.ndarray:
    """array[layer] on the host, of an array whose layers are spread over the devices of several processes."""
    for piece in array.addressable_shards:
        first, end, _ = piece.index[0].indices(len(array))
        if first <= layer < end:
            return np.asarray(piece.data[layer - first])
    raise ValueError(f"layer {layer} is with another process")


@functools.lru_cache(maxsize=4)
def _opened(of: Packing):
    """One layer's words [S, ...] -> two parts of each sum, each as (x'x [S, D, D], beside it [S, D, C + 1])."""
    unpacked = jax.vmap(functools.partial(unpack, of=of))
    return jax.jit(lambda words: tuple(map(unpacked, opened(words))))


@functools.lru_cache(maxsize=4)
def _received(sharding: NamedSharding):
    return jax.jit(lambda x: x, out_shardings=sharding)


@functools.lru_cache(maxsize=4)
def _pick(sharding: NamedSharding):
    return jax.jit(lambda every, place: every[place], out_shardings=sharding)


def layers_on(devices: Sequence[jax.Device], states: int) -> tuple[Mesh, int]:
    """A mesh that shares the states, and their number with what fills up the last device."""
    mesh = Mesh(np.asarray(devices), ("layer",), axis_types=(AxisType.Auto,))
    return mesh, -(-states // mesh.size) * mesh.size


class _Targets:
    """The targets, shifted by their mean over the rows used, and their own moments, which need no device."""

    def __init__(self, segments: Mapping[str, np.ndarray], y: np.ndarray):
        used = np.unique(np.concatenate(list(segments.values())))
        self._shift = y[used].mean(axis=0)
        # Rounded here, so that y'y is of the same numbers as x'y. A row that is not used may hold NaN.
        self._y = np.zeros(y.shape, np.float32)
        self._y[used] = y[used] - self._shift
        self._segments = segments

    def shifted(self, rows: np.ndarray) -> np.ndarray:
        return self._y[rows]

    def moments(self) -> dict[str, np.ndarray]:
        parts = [self._y[rows].astype(np.float64) for rows in self._segments.values()]
        return {
            "count": np.array([float(len(part)) for part in parts]),
            "y_shift": np.broadcast_to(self._shift, (len(parts), len(self._shift))),
            "y_sum": np.stack([part.sum(axis=0) for part in parts]),
            "yy": np.stack([(part**2).sum(axis=0) for part in parts]),
        }


class Members(NamedTuple):
    """Which of the rows that are added at once are in each of K segments, for segments of about one size."""

    segments: Int[np.ndarray, " K"]
    rows: Int[np.ndarray, "K capacity"]
    counts: Float[np.ndarray, "K capacity"]  # 1 for a row, 0 for filling


def members(parts: Sequence[np.ndarray], segments: Sequence[np.ndarray]) -> list[list[Members]]:
    """For each of the rows that are added its members, in shapes that are the same for all: one program serves them.

    Segments within a factor of two of each other share a shape: few programs, and little work on filling.
    """
    found = [[np.flatnonzero(np.isin(rows, wanted)) for wanted in segments] for rows in parts]
    capacity = np.array([max(map(len, column)) for column in zip(*found, strict=True)])
    capacity = -(-capacity // _ROW_MULTIPLE) * _ROW_MULTIPLE
    left, classes = np.argsort(-capacity, kind="stable"), []
    while len(left) and capacity[left[0]]:
        alike = 2 * capacity[left] > capacity[left[0]]
        classes.append(left[alike])
        left = left[~alike]

    def of_one_shape(shard: Sequence[np.ndarray], chosen: np.ndarray) -> Members:
        rows = np.zeros((len(chosen), capacity[chosen[0]]), np.int32)
        counts = np.zeros(rows.shape, np.float32)
        for i, segment in enumerate(chosen):
            rows[i, : len(shard[segment])] = shard[segment]
            counts[i, : len(shard[segment])] = 1
        return Members(chosen.astype(np.int32), rows, counts)

    return [[of_one_shape(shard, chosen) for chosen in classes] for shard in found]


@functools.lru_cache(maxsize=4)
def compiled_add(mesh: Mesh):
    """The compiled step that adds some rows to the sums [L, S, words, columns], see `packing`."""

    def add(sums, x, pilot, y, members):

        def one_layer(layer, sums):
            state = rotate(x[layer].astype(jnp.float32), *(leaf[layer] for leaf in pilot))
            for alike in members:

                def one_segment(i, sums, alike=alike):
                    rows, counts = alike.rows[i], alike.counts[i][:, None]
                    value = packed_product(state[rows] * counts, jnp.concatenate([y[rows] * counts, counts], axis=1))
                    at = (layer, alike.segments[i], 0, 0)
                    before = lax.dynamic_slice(sums, at, (1, 1, *sums.shape[2:]))[0, 0]
                    return lax.dynamic_update_slice(sums, add_to(before, value)[None, None], at)

                sums = lax.fori_loop(0, len(alike.segments), one_segment, sums)
            return sums

        # One layer and segment at a time, in place (for which both numbers of a sum are in one array: XLA copied two of
        # them whole at every step): temporary memory is one product's.
        return lax.fori_loop(0, len(x), one_layer, sums)

    layers = P("layer")
    spread = jax.shard_map(add, mesh=mesh, in_specs=(layers, layers, layers, P(), P()), out_specs=layers)
    return jax.jit(spread, donate_argnums=0)
