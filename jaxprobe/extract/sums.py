"""Streaming: what ridge needs to know of the training rows, summed up while the forward runs, with no row kept.

For every state and every segment of rows (a fold, a hold-out group): count, mean, x'x, x'y and y'y. Memory is one
D x D matrix for each state and segment, however many rows there are.
"""

import functools
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
from jaxprobe.probes.solve import Sums

_ROW_MULTIPLE = 8


def moments_size(states: int, segments: int, width: int, targets: int, devices: int = 1) -> int:
    """Bytes that the moments take on each device: two float32 numbers for each sum."""
    return 2 * 4 * -(-states // devices) * segments * width * sum_columns(width, targets)


def wave_size(states: int, rows: int, width: int, itemsize: int, devices: int = 1, shares: int = 1) -> int:
    """Bytes that shards of ``rows`` rows take on each device on their way to the sums.

    The one that is added; and of several shares those of all, as each device sends and as it receives them.
    """
    shard = -(-states // devices) * rows * width * itemsize
    return shard * (1 + 2 * shares) if shares > 1 else shard


def sum_columns(width: int, targets: int) -> int:
    """Columns of one state's sums: x'x, x'y and x'1 side by side, filled up with zeros.

    Another number than a multiple of 8 a TPU lays out anew before and after each shard: two copies of all sums.
    """
    return -(-(width + targets + 1) // 8) * 8


class MomentStream:
    """Moments of the rows of a table that pass by shard by shard.

    Rows are shifted by a pilot mean (that of the first shard), so that states whose mean is thousands of times their
    spread keep their digits; and a state's largest dimensions are rotated among themselves by the pilot's principal
    axes, as massive dimensions that move together would leave none to what they differ by. A shard's products are
    float32 at the highest matmul precision; sums over shards carry their rounding error along (Knuth's two-sum), so
    they are as exact for a million rows as for a thousand.

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
        self._rows = shard_rows
        self._targets = y.shape[1]
        self._members = members(shard_rows, list(segments.values()))
        grid = np.asarray(jax.devices() if devices is None else devices)
        grid = grid if grid.ndim == 2 else grid[:, None]
        self._mesh, self._layers = layers_on(list(grid.flat), len(self.states))
        self._by_share = Mesh(grid, ("device", "share"), axis_types=(AxisType.Auto,) * 2)
        self._sharding = NamedSharding(self._mesh, P("layer"))
        shape = (self._layers, len(segments), 2, width, sum_columns(width, y.shape[1]))
        self._sums = jax.jit(lambda: jnp.zeros(shape, jnp.float32), out_shardings=self._sharding)()
        self._pilot: Pilot | None = None

    def add(self, shard: int, x: Float[np.ndarray, "L n D"] | Float[Array, "L n D"]) -> None:
        """Adds a shard's rows, each shard once.

        Args:
          x: the states of the shard's rows, in the order of ``states``; on the host, or on the devices in any sharding.
        """
        if x.shape[:2] != (len(self.states), len(self._rows[shard])):
            raise ValueError(
                f"shard {shard} is {x.shape}, not {len(self.states)} states of {len(self._rows[shard])} rows"
            )
        self._add(shard, self._spread(x))

    def add_wave(self, wave: Sequence[int], x: Float[np.ndarray, "L n D"]) -> None:
        """Adds the shards that several processes computed side by side; all of them call it.

        Args:
          wave: the shards, one for each share; the last shares may have none.
          x: the states of this process's shard, [L, 0, D] where it has none.
        """
        if self._by_share.shape["share"] == 1:
            self.add(wave[0], x)
            return
        every = self._exchange(x)
        for place, shard in enumerate(wave):
            self._add(shard, _pick(self._sharding)(every, place))

    def _add(self, shard: int, x: Array) -> None:
        if self._pilot is None:
            self._pilot = self._find_pilot(x, len(self._rows[shard]))
        y = np.zeros((x.shape[1], self._targets), np.float32)
        y[: len(self._rows[shard])] = self._y.shifted(self._rows[shard])
        self._sums = compiled_add(self._mesh)(self._sums, x, self._pilot, y, self._members[shard])

    def moments(self, state: str) -> dict[str, Float64[np.ndarray, "..."]]:
        """One state's moments of every segment, with a leading segment axis, in float64.

        Returns:
          count [S]; x_shift [S, D], y_shift [S, C]; and about these shifts x_sum [S, D], y_sum [S, C], xx [S, D, D],
          xy [S, D, C], yy [S, C] (sums, not means).
        """
        if self._pilot is None:
            raise ValueError("no shard was added")
        layer = self.states.index(state)
        # Exact: a float64 holds the sum of two float32 of which one is the other's rounding error.
        sums = _one_layer(self._sums, layer).sum(axis=1, dtype=np.float64)
        shift, top, axes = (_one_layer(leaf, layer) for leaf in self._pilot)
        width, ones = len(shift), len(shift) + self._targets
        # Back to the dimensions of the model, where float64 has digits enough; by the inverse, as rounding left axes
        # that are orthogonal to seven digits.
        back = np.linalg.inv(rotation(axes))
        sums[:, top] = back.T @ sums[:, top]
        sums[:, :, top] = sums[:, :, top] @ back
        return self._y.moments() | {
            "x_shift": np.broadcast_to(shift.astype(np.float64), (len(self.segments), width)),
            "x_sum": sums[:, :, ones],
            "xx": sums[:, :, :width],
            "xy": sums[:, :, width:ones],
        }

    def on_devices(self) -> Sums:
        """The sums of this process's states where they are, in the order of ``states_here`` and then what fills up."""
        if self._pilot is None:
            raise ValueError("no shard was added")
        pieces = sorted(self._sums.addressable_shards, key=lambda piece: piece.index[0].indices(self._layers)[0])
        mesh, _ = layers_on([piece.device for piece in pieces], len(self.states))
        sharding = NamedSharding(mesh, P("layer"))

        def here(array: Array) -> Array:
            of = {piece.device: piece.data for piece in array.addressable_shards}
            parts = [of[piece.device] for piece in pieces]
            shape = (sum(map(len, parts)), *array.shape[1:])
            return jax.make_array_from_single_device_arrays(shape, sharding, parts)

        y = self._y.moments()
        sums, pilot = here(self._sums), map(here, self._pilot)
        return Sums(mesh, sums, *pilot, y["count"], y["y_shift"][0], y["y_sum"], y["yy"])

    def _find_pilot(self, x: Array, rows: int) -> "Pilot":
        """From the first shard, of which ``rows`` rows are no filling; each process decomposes for its own devices."""
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
        """Every share's shard [shares, L, n, D]: from the process with its rows to the devices with the states."""
        shares, each = self._by_share.shape["share"], self._layers // self._by_share.shape["device"]
        shape = (shares, self._layers, max(map(len, self._rows)), x.shape[2])

        def part(index: tuple[slice, ...]) -> np.ndarray:
            here = x[index[1]]
            full = np.zeros((1, each, *shape[2:]), x.dtype)
            full[0, : len(here), : here.shape[1]] = here
            return full

        sent = jax.make_array_from_callback(shape, NamedSharding(self._by_share, P("share", "device")), part)
        return _received(NamedSharding(self._by_share, P(None, ("device", "share"))))(sent)

    def _spread(self, x: np.ndarray | Array) -> Array:
        """States to their devices; filled up with zeros to one shape for all shards and as many states for each."""
        shape = (self._layers, max(map(len, self._rows)), x.shape[2])
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
    """What each state's rows are shifted and rotated by, of the first shard."""

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
    """Which rows of one shard are in each of K segments, for segments of about one size."""

    segments: Int[np.ndarray, " K"]
    rows: Int[np.ndarray, "K capacity"]
    counts: Float[np.ndarray, "K capacity"]  # 1 for a row, 0 for filling


def members(shard_rows: Sequence[np.ndarray], segments: Sequence[np.ndarray]) -> list[list[Members]]:
    """For each shard its members, in shapes that are the same for every shard, so that one program serves all.

    Segments within a factor of two of each other share a shape: few programs, and little work on filling.
    """
    found = [[np.flatnonzero(np.isin(rows, wanted)) for wanted in segments] for rows in shard_rows]
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
    """The compiled step that adds one shard to the sums [L, S, 2, D, columns], see `sum_columns`."""

    def add(sums, x, pilot, y, members):
        width = x.shape[2]

        def one_layer(layer, sums):
            state = rotate(x[layer].astype(jnp.float32), *(leaf[layer] for leaf in pilot))
            for alike in members:

                def one_segment(i, sums, alike=alike):
                    rows, counts = alike.rows[i], alike.counts[i][:, None]
                    block = jnp.concatenate([state[rows] * counts, y[rows] * counts, counts], axis=1)
                    block = jnp.pad(block, ((0, 0), (0, sums.shape[-1] - block.shape[1])))
                    product = jnp.matmul(block[:, :width].T, block, precision="highest")
                    return _two_sum(sums, product, layer, alike.segments[i])

                sums = lax.fori_loop(0, len(alike.segments), one_segment, sums)
            return sums

        # One layer and segment at a time, in place: temporary memory is one product's.
        return lax.fori_loop(0, len(x), one_layer, sums)

    layers = P("layer")
    spread = jax.shard_map(add, mesh=mesh, in_specs=(layers, layers, layers, P(), P()), out_specs=layers)
    return jax.jit(spread, donate_argnums=0)


def _two_sum(sums: Array, value: Array, layer: Array, segment: Array) -> Array:
    """Adds ``value`` to one sum and what the addition rounds off to the number beside it.

    Both live in one array: XLA updates that in place, and copied two of them whole at every step (10 times slower).
    Source: Knuth, TAOCP vol. 2, section 4.2.2, theorem B.
    """
    at = (layer, segment, 0, 0, 0)
    total, rest = lax.dynamic_slice(sums, at, (1, 1, *sums.shape[2:]))[0, 0]
    new = total + value
    added = new - total
    rest = rest + ((total - (new - added)) + (value - added))
    return lax.dynamic_update_slice(sums, jnp.stack([new, rest])[None, None], at)
