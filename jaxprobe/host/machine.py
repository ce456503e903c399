"""This machine: the memory that is free on it and on its accelerators, and how fast it multiplies."""

import functools
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

_SIDE, _REPEATS = 2048, 3


def free_memory() -> int | None:
    """Bytes that this process can still get of the machine, its container and its own limit; None off Linux."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return min(size for size in (free, _free_in_container(), _free_in_limit()) if size is not None)


def _free_in_container() -> int | None:
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files in the page cache count as used until something else needs the room.
        return limit - used + int(statistics["inactive_file"])
    except (OSError, KeyError, ValueError):  # no container, or one without a limit ("max")
        return None


def _free_in_limit() -> int | None:
    """Of ``ulimit -v``, which counts addresses, used or not."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return max(0, limit - pages * resource.getpagesize())


def free_on_devices(devices: Sequence[jax.Device]) -> int | None:
    """Bytes free on the fullest of this process's accelerators; None where they don't tell."""
    found = [device.memory_stats() for device in devices if device.platform != "cpu"]
    found = [stats for stats in found if stats and "bytes_limit" in stats]
    return min((stats["bytes_limit"] - stats["bytes_in_use"] for stats in found), default=None)


@functools.cache  # a command that prepares several runs times it once
def product_rate() -> float:
    """Operations of a large float32 product in a second, by JAX's default device; takes a fifth of a second."""
    matrix = jnp.ones((_SIDE, _SIDE), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    started = time.perf_counter()
    for _ in range(_REPEATS):
        product(matrix, matrix).block_until_ready()
    # A product uses all cores, so devices that share them add nothing.
    return _REPEATS * 2 * _SIDE**3 / (time.perf_counter() - started)
