"""Memory of a whole run, known before it starts: what is there at once on the host and on each device."""

from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from jaxprobe.cost.counts import ITEM_BYTES, Program, count_step, count_sums, forward_steps
from jaxprobe.errors import InputError
from jaxprobe.extract.extraction import Extraction
from jaxprobe.extract.forward import STEPS_IN_FLIGHT
from jaxprobe.extract.shares import share_count
from jaxprobe.extract.sums import pieces, wave_size
from jaxprobe.host.machine import free_memory, free_on_devices
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.placement import parameter_bytes
from jaxprobe.probes.metrics import scoring_memory
from jaxprobe.probes.solve import folds_together

# The shard being filled, the one before it on its way to the disk or the devices, and for the disk a copy.
STORED_SHARDS, STREAMED_SHARDS = 3, 2
# Float64 matrices that the fit of one state holds for each fold on a CPU (5.0 measured at D = 1536, 5 folds).
_FIT_COPIES = 6
# Float32 matrices that it holds on accelerators, where the sums are: (for each of the folds that are solved at once, of
# one at a time). Compilers allot 10.6 and 7.1 for TPUs and 4.0 and 8.2 for GPUs at widths from 1,024 to 16,384.
_DEVICE_COPIES = {"tpu": (11, 8), "gpu": (5, 9)}


class Memory(NamedTuple):
    """Bytes: of the host, and of each device (0 for devices that use the host's own memory, a CPU's)."""

    host: int
    device: int


def fit_memory(folds: int, width: int, targets: int) -> int:
    """Bytes that the fit of one state from sums takes on a CPU."""
    return _FIT_COPIES * 8 * folds * width * (width + targets + 1)


def device_fit_memory(folds: int, width: int, platform: str) -> int:
    """Bytes beside the sums that the fit of one state from them takes on an accelerator."""
    of_each, of_one = _DEVICE_COPIES[platform]
    return 4 * width**2 * (folds * of_each if folds_together(width, platform) else of_one)


def peak_of_stored(forward: Program) -> int:
    """Bytes of a device while steps whose states are stored run one after the other."""
    return forward.peak + STEPS_IN_FLIGHT * forward.outputs


def peak_of_streamed(parameters: int, forward: Program, sums: Program, exchanged: int) -> int:
    """Bytes of a device where states are summed up: a shard waits to be added while the next steps begin.

    Args:
      parameters: bytes of the weights.
      exchanged: bytes of the shards that other processes send (see `wave_size`).
    """
    waiting = (STEPS_IN_FLIGHT + 1) * forward.outputs + sums.arguments + exchanged
    return waiting + max(forward.peak - forward.outputs, parameters + sums.peak - sums.arguments)


def memory_needed(
    passes: Sequence[Extraction],
    config: ModelConfig,
    mesh: Mesh,
    dtype: str,
    *,
    scored_rows: int,
    targets: int,
    folds: int = 0,
) -> Memory:
    """What is in memory at once in a run whose extractions go one after the other.

    With --no-store each device holds the sums while the first of them runs; they are fitted, and the rows of the last
    scored, with the weights still there. Stored states are fitted and scored without the weights, one at a time.

    Args:
      config: of the blocks that are run.
      scored_rows: rows whose predictions are scored: the test rows, of stored states all.
      folds: of the training rows, 0 where states are stored.
    """
    platform, item, shares = mesh.devices.flat[0].platform, ITEM_BYTES[dtype], share_count(mesh)
    width = passes[0].width
    states = -(-passes[0].numbers_a_row // width)  # neurons count as the states that take their room
    parameters = parameter_bytes(config, mesh.shape, dtype)
    every_shard = [shard.rows for part in passes for shard in part.plan.shards]
    rows, added = max(map(len, every_shard)), max(len(part) for shard in every_shard for part in pieces(shard, width))
    steps = [
        count_step(config, step, mesh.shape, dtype, platform)
        for part in passes
        for step in forward_steps(part.plan, states, mesh.shape, shares)
    ]
    shards = (STREAMED_SHARDS if folds else STORED_SHARDS) * rows * states * width * item
    scoring, fit, sums = scoring_memory(scored_rows, states, targets), 0, 0
    if folds:
        add = count_sums(states, added, folds, width, targets, mesh.size, dtype)
        sizes = states, added, width, item, mesh.size
        exchanged = wave_size(*sizes, shares) - wave_size(*sizes)
        device = max(peak_of_streamed(parameters, step, add, exchanged) for step in steps)
        fit, sums = fit_memory(folds, width, targets), add.outputs
    else:
        device = max(map(peak_of_stored, steps))
    if platform == "cpu":
        each, weights = len(mesh.local_devices), parameters if folds else 0
        return Memory(max(device * each + shards, (weights + sums) * each + fit, weights * each + scoring), 0)
    if folds:  # the host's fit is of what float32 does not suffice for
        device = max(device, parameters + sums + device_fit_memory(folds, width, platform))
    return Memory(max(shards, fit, scoring), device)


def check_memory(needed: Memory, mesh: Mesh) -> None:
    """Raises InputError where the host or a device has less free than is needed; where that can't be known, passes."""
    problems = []
    remedy = "Use --dtype bfloat16, fewer --layers, or more devices."
    if mesh.devices.flat[0].platform == "cpu":  # where bfloat16 saves little, see `count_step`
        remedy = "Use fewer --layers, or a machine with more memory."
    for what, size, free in (
        ("this machine", needed.host, free_memory()),
        ("a device", needed.device, free_on_devices(mesh.local_devices)),
    ):
        if free is not None and free < size:
            problems.append(
                f"The run needs {size / 1e9:.2f} GB of memory and {what} has {free / 1e9:.2f} GB free. {remedy}"
            )
    if problems:
        raise InputError(*problems)
