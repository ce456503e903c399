"""Operations, traffic and collectives from shapes: what a plan for GPUs rests on, and compiled ones are held to.

Letters and mesh axes as in jaxprobe/mesh.py. Everything is of one chip.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxprobe.cost.operations import block_bytes, keys_met, matrix_weights, slot_operations
from jaxprobe.extract.sums import moments_size, wave_size
from jaxprobe.models.config import LlamaConfig


class Collective(NamedTuple):
    """A collective operation of one chip."""

    kind: str
    size: int  # bytes of its result; of a reduce-scatter, of its operand
    devices: int  # that take part
    times: int  # that it runs in one call of the program

    @property
    def sent(self) -> float:
        """Bytes that a chip sends for all turns, by the ring algorithms."""
        share = (self.devices - 1) / self.devices
        moved = {"all-reduce": 2 * share, "collective-permute": 1.0, "all-to-all": share}.get(self.kind, share)
        return self.times * self.size * moved


class Step(NamedTuple):
    """One step of the forward."""

    bins: int  # B, over all chips
    slots: int  # T
    root: int  # R
    wanted: int  # W
    states: int


class Count(NamedTuple):
    """What a program does on one chip."""

    operations: float
    traffic: float  # bytes read from and written to memory
    temporary: int  # bytes
    outputs: int  # bytes
    collectives: tuple[Collective, ...]


def count_step(config: LlamaConfig, step: Step, mesh: Mapping[str, int], dtype_bytes: int) -> Count:
    """The forward of ``step.bins`` bins."""
    data, model = mesh.get("data", 1) * mesh.get("fsdp", 1), mesh.get("model", 1)
    bins, keys = step.bins // data, keys_met(step.slots, step.root)
    products = bins * step.slots * slot_operations(config, keys) // model
    one = block_bytes(config, bins, step.slots, keys, mesh, dtype_bytes)
    outputs = step.states * bins * step.wanted * config.width * dtype_bytes // model
    # The stream is read and written about four times a block, each product's result twice.
    traffic = config.layers * (one.weights + 8 * one.stream + 4 * (one.inner + one.query + one.scores)) + outputs
    return Count(
        config.layers * products, traffic, one.temporary, outputs, step_collectives(config, step, mesh, dtype_bytes)
    )


def step_collectives(
    config: LlamaConfig, step: Step, mesh: Mapping[str, int], dtype_bytes: int
) -> tuple[Collective, ...]:
    """Two sums of the residual stream over ``model`` and one gathering of a block's weights over ``fsdp``, a block."""
    fsdp, model = mesh.get("fsdp", 1), mesh.get("model", 1)
    stream = 4 * step.bins // (mesh.get("data", 1) * fsdp) * step.slots * config.width
    found = []
    if model > 1:
        found.append(Collective("all-reduce", stream, model, 2 * config.layers))
        found.append(Collective("all-reduce", stream * dtype_bytes // 4, model, 1))  # of the embedding
    if fsdp > 1:
        found.append(Collective("all-gather", matrix_weights(config) * dtype_bytes // model, fsdp, config.layers))
        found.append(Collective("all-to-all", stream * dtype_bytes // 4, fsdp, 1))
    return tuple(found)


def count_moments(states: int, rows: int, segments: int, width: int, targets: int, chips: int, bytes_: int) -> Count:
    """Adding a shard of ``rows`` rows to the sums of its states; each row is in one segment."""
    layers = -(-states // chips)
    operations = 2.0 * layers * rows * width * (width + targets + 1)
    sums = moments_size(states, segments, width, targets, chips)
    shard = wave_size(states, rows, width, bytes_, chips)
    # Beside the shard four float32 matrices, as the compiler has it for TPUs.
    return Count(operations, 3.0 * sums + 2 * shard, 4 * 4 * width**2 + shard, sums, ())


def count_ridge(rows: int, width: int, targets: int, penalties: int) -> dict[str, float]:
    """Operations of one state's probe by Cholesky, by program: x'x in strips; for each penalty a root, and all rows."""
    root = width**3 * 4 / 3
    return {
        "normal equations": 2 * rows * width**2 * 5 / 8,
        "leave-one-out": penalties * (root + 2 * rows * width**2),
        "weights": targets * root,
    }
