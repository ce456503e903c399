"""Memory that an extraction takes, known before it starts, against what is free."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxprobe.errors import InputError
from jaxprobe.extract.collect import Extraction
from jaxprobe.extract.forward import STEPS_IN_FLIGHT
from jaxprobe.extract.shares import share_count
from jaxprobe.models.config import LlamaConfig
from jaxprobe.models.load import DTYPES

# The shard being filled, the one before it on its way to the disk or the devices, and a copy there.
SHARDS_IN_MEMORY = 3


class Memory(NamedTuple):
    """Bytes: of the host, and of each device."""

    host: int
    device: int


def memory_needed(
    extractions: Sequence[Extraction], config: LlamaConfig, mesh: Mesh, dtype: str, sums: Memory
) -> Memory:
    """What stays in memory while the extractions run one after the other: weights, shards, results not yet copied.

    Args:
      config: of the blocks that are run.
      sums: what streamed rows are summed up in.

    Returns:
      The host's, and each device's: 0 for devices that use the host's own memory (CPU).
    """
    item = np.dtype(DTYPES[dtype]).itemsize
    weights = config.parameter_count() * item // (mesh.shape["fsdp"] * mesh.shape["model"])
    shards = steps = 0
    for extraction in extractions:
        row = len(extraction.states) * extraction.width * item
        for shard in extraction.plan.shards:
            shards = max(shards, SHARDS_IN_MEMORY * len(shard.rows) * row)
            steps = max(steps, (STEPS_IN_FLIGHT + 1) * shard.batches[0].wanted.size * row)
    device = weights + sums.device + steps * share_count(mesh) // mesh.size
    if mesh.devices.flat[0].platform == "cpu":
        return Memory(shards + sums.host + device * len(mesh.local_devices), 0)
    return Memory(shards + sums.host, device)


def check_memory(needed: Memory, mesh: Mesh) -> None:
    """Raises InputError where the host or a device has less free than is needed; where that can't be known, passes."""
    problems = []
    for what, size, free in (
        ("this machine", needed.host, free_memory()),
        ("a device", needed.device, _free_on_devices(mesh)),
    ):
        if free is not None and free < size:
            problems.append(
                f"The run needs {size / 1e9:.2f} GB of memory and {what} has {free / 1e9:.2f} GB free. "
                "Use --dtype bfloat16, fewer --layers, or more devices."
            )
    if problems:
        raise InputError(*problems)


def free_memory() -> int | None:
    """Bytes that this machine, or the container that the process is in, can still give; None off Linux."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files in the page cache count as used until something else needs the room.
        return min(free, limit - used + int(statistics["inactive_file"]))
    except (OSError, KeyError, ValueError):  # no container, or one without a limit ("max")
        return free


def _free_on_devices(mesh: Mesh) -> int | None:
    """Bytes free on the fullest of this process's accelerators; None where they don't tell."""
    found = [device.memory_stats() for device in mesh.local_devices if device.platform != "cpu"]
    found = [stats for stats in found if stats and "bytes_limit" in stats]
    return min((stats["bytes_limit"] - stats["bytes_in_use"] for stats in found), default=None)
