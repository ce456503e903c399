"""Layers over devices: each solves its own without communication; a count that does not divide is padded and cut."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  (jaxlib loads its LAPACK at the first call, too late for a limit set before)
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from threadpoolctl import threadpool_limits

from jaxprobe.errors import InputError

# What an accelerator holds of states at a time; a CPU holds one state, which is also faster there.
BATCH_BYTES = 2**31
# Beside its rows a state takes about so many float32 copies of them while it is fitted, and so many matrices of x'x.
FIT_ROWS, FIT_MATRICES = 4, 8


# Decompositions of fewer rows have one BLAS thread: OpenBLAS's own spin after eigh and halve the speed of what follows,
# which is more than they gain. On two cores they gain nothing at 1024, a tenth of the fit at 2048.
THREADS_PAY_FROM = 1024
# Factors of several penalties are made side by side on a CPU, one for each core up to so many (each has two matrices),
# with one BLAS thread each: on two cores, of width 512 to 4,096, in .7 to .85 of the time of one after the other.
SIDE_BY_SIDE = min(os.cpu_count() or 1, 4)


@contextmanager
def solving(shape: tuple[int, ...]) -> Iterator[None]:
    """float64 is there, and BLAS has the threads that a decomposition for states [..., N, D] is fastest with."""
    threads = None if min(shape[-2:]) > THREADS_PAY_FROM else 1
    with jax.enable_x64(True), threadpool_limits(threads, user_api="blas"):
        yield


def layer_mesh(devices: Sequence[jax.Device] | None) -> Mesh:
    """A mesh with the one axis ``layer``: all local accelerators, or the first CPU device (more gain nothing)."""
    if devices is None:
        devices = jax.local_devices()
        devices = devices[:1] if devices[0].platform == "cpu" else devices
    return Mesh(np.array(devices), ("layer",), axis_types=(AxisType.Auto,))


def at_once(mesh: Mesh) -> bool:
    """Whether a device takes several layers at once: accelerators do, a CPU does not.

    Batched LAPACK calls are slower than single ones there, and can deadlock with few cores (jaxlib 0.10).
    """
    return not on_cpu(mesh)


def layers_at_once(shape: tuple[int, int], itemsize: int, layers: int, mesh: Mesh) -> int:
    """How many layers' [N, D] a device takes at a time."""
    return accelerator_batch(shape, itemsize, layers, mesh.size) if at_once(mesh) else 1


def accelerator_batch(shape: tuple[int, int], itemsize: int, layers: int, devices: int) -> int:
    """How many layers' [N, D] each of so many accelerators takes at a time."""
    size = shape[0] * shape[1] * (itemsize + 4 * FIT_ROWS) + FIT_MATRICES * 4 * min(shape) ** 2
    return int(np.clip(BATCH_BYTES // size, 1, -(-layers // devices)))


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are CPUs, which have float64 and LAPACK's eigendecomposition."""
    return mesh.devices.flat[0].platform == "cpu"


def on_tpu(mesh: Mesh) -> bool:
    """Whether the devices are TPUs, which have no float64 linear algebra (libtpu 0.0.52 does not compile it)."""
    return mesh.devices.flat[0].platform == "tpu"


def eigh_device() -> jax.Device | None:
    """Where one layer's float64 eigendecomposition runs: JAX's default device (None), or with TPUs the host."""
    return jax.local_devices(backend="cpu")[0] if jax.default_backend() == "tpu" else None


@cache
def over_layers(function: Callable, mesh: Mesh, in_axes: tuple[int | None, ...], **static) -> Callable:
    """``function`` of one layer, compiled for arrays with a leading layer axis where ``in_axes`` has a 0.

    A device's layers are taken at once (vmap) or one by one, see ``at_once``.
    """
    function = partial(function, **static)

    def one_by_one(*args):
        layered = tuple(arg for arg, axis in zip(args, in_axes, strict=True) if axis == 0)

        def one(layer):
            rest = iter(layer)
            return function(*(next(rest) if axis == 0 else arg for arg, axis in zip(args, in_axes, strict=True)))

        return lax.map(one, layered)

    each = jax.vmap(function, in_axes) if at_once(mesh) else one_by_one
    specs = tuple(P("layer") if axis == 0 else P() for axis in in_axes)
    return jax.jit(jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=P("layer"), check_vma=False))


def batches(
    names: Sequence[str], read: Callable[[str], np.ndarray | jax.Array], first: np.ndarray | jax.Array, mesh: Mesh
) -> Iterator[tuple[Sequence[str], jax.Array]]:
    """(names, states [B, N, D] over the mesh) in order; the next batch is read by a thread while this one is used.

    B is the same for every batch: the last one is padded with copies of its last state. ``first`` is read already.
    """
    shape, held = first.shape, {names[0]: first}
    batch = layers_at_once(shape, first.dtype.itemsize, len(names), mesh) * mesh.size
    sharding = NamedSharding(mesh, P("layer"))

    def load(start):
        wanted = names[start : start + batch]
        states = [held.pop(name) if name in held else read(name) for name in wanted]
        for name, state in zip(wanted, states, strict=True):
            if state.shape != shape:
                raise InputError(
                    f"State '{name}' has shape {state.shape}, '{names[0]}' {shape}. Fit states of one model at a time."
                )
        states += states[-1:] * (batch - len(states))
        stack = jnp.stack if isinstance(states[0], jax.Array) else np.stack
        stacked = states[0][None] if batch == 1 else stack(states)
        with jax.enable_x64(True):  # of this thread: float64 states stay so
            return wanted, jax.device_put(stacked, sharding)

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(load, 0)
        for following in range(batch, len(names) + batch, batch):
            loaded = ahead.result()
            if following < len(names):
                ahead = reader.submit(load, following)
            yield loaded


def gather(name: str, state: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """state[rows], laid out so that JAX on a CPU uses it without another copy: it wants 64-byte alignment."""
    state = np.asarray(state)
    if state.ndim != 2 or (len(rows) and not 0 <= rows.min() <= rows.max() < len(state)):
        raise InputError(
            f"State '{name}' has shape {state.shape}; wanted 2 dimensions, and each of the rows asked for."
        )
    size = len(rows) * state.shape[1] * state.itemsize
    buffer = np.empty(size + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    out = buffer[start : start + size].view(state.dtype).reshape(len(rows), state.shape[1])
    return np.take(state, rows, axis=0, out=out, mode="clip")  # mode "raise" would go through a buffer
