"""Memory that an extraction takes, known before it starts, against what is free."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxprobe.cost.operations import block_bytes, keys_met
from jaxprobe.errors import InputError
from jaxprobe.extract.extraction import Extraction
from jaxprobe.extract.forward import STEPS_IN_FLIGHT, devices_per_share, root_slots
from jaxprobe.extract.shares import share_count
from jaxprobe.extract.sums import wave_size
from jaxprobe.extract.trie import Plan, batch_shapes
from jaxprobe.models.config import LlamaConfig
from jaxprobe.models.load import DTYPES
from jaxprobe.models.placement import parameter_bytes

# The shard being filled, the one before it on its way to the disk or the devices, and for the disk a copy.
STORED_SHARDS, STREAMED_SHARDS = 3, 2


class Memory(NamedTuple):
    """Bytes: of the host, and of each device."""

    host: int
    device: int


def memory_needed(
    extractions: Sequence[Extraction], config: LlamaConfig, mesh: Mesh, dtype: str, sums: int, fit: Memory
) -> Memory:
    """What is in memory at once while the extractions run one after the other, and the fit from sums after the first.

    Args:
      config: of the blocks that are run.
      sums: bytes on each device of what streamed rows are summed up in; 0 where states are stored.
      fit: what a fit from the sums takes, with the weights still there.

    Returns:
      The host's, and each device's: 0 for devices that use the host's own memory (CPU).
    """
    item = np.dtype(DTYPES[dtype]).itemsize
    kept = parameter_bytes(config, mesh.shape, dtype) + sums
    shards = steps = 0
    for extraction in extractions:
        states, width = len(extraction.states), extraction.width
        rows = max(len(shard.rows) for shard in extraction.plan.shards)
        wanted = max(shard.batches[0].wanted.size for shard in extraction.plan.shards)
        shards = max(shards, (STREAMED_SHARDS if sums else STORED_SHARDS) * rows * states * width * item)
        results = (STEPS_IN_FLIGHT + 1) * wanted * states * width * item * share_count(mesh) // mesh.size
        added = wave_size(states, rows, width, item, mesh.size, share_count(mesh)) if sums else 0
        steps = max(steps, results + added + _temporary(extraction.plan, config, mesh, item))
    if mesh.devices.flat[0].platform == "cpu":
        each = len(mesh.local_devices)
        return Memory(kept * each + max(shards + steps * each, fit.host), 0)
    return Memory(max(shards, fit.host), kept + max(steps, fit.device))


def _temporary(plan: Plan, config: LlamaConfig, mesh: Mesh, itemsize: int) -> int:
    """Bytes of each device that the largest step takes beside weights and results."""
    on_cpu, fsdp = mesh.devices.flat[0].platform == "cpu", mesh.shape["fsdp"]
    root = root_slots(plan.root)
    each, item = devices_per_share(mesh), 4 if on_cpu else itemsize
    blocks = [
        block_bytes(config, bins // each, slots, keys_met(slots, root), mesh.shape, item)
        for bins, slots in batch_shapes(plan)
    ]
    # XLA copies all blocks' weights on a CPU before the first: bfloat16 as bits, and over ``fsdp`` for their layout.
    copies = on_cpu and (fsdp > 1 or itemsize < 4)
    copied = config.layers * blocks[0].weights * itemsize // item // fsdp if copies else 0
    return copied + max(block.temporary for block in blocks)


def check_memory(needed: Memory, mesh: Mesh) -> None:
    """Raises InputError where the host or a device has less free than is needed; where that can't be known, passes."""
    problems = []
    remedy = "Use --dtype bfloat16, fewer --layers, or more devices."
    if mesh.devices.flat[0].platform == "cpu":  # where bfloat16 saves little, see `_temporary`
        remedy = "Use fewer --layers, or a machine with more memory."
    for what, size, free in (
        ("this machine", needed.host, free_memory()),
        ("a device", needed.device, _free_on_devices(mesh)),
    ):
        if free is not None and free < size:
            problems.append(
                f"The run needs {size / 1e9:.2f} GB of memory and {what} has {free / 1e9:.2f} GB free. {remedy}"
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
