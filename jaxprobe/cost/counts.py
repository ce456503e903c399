"""Parameters, operations, bytes and collectives of a run's programs, from shapes alone.

The one model of cost: `run` checks memory and time by it before it starts, `plan` holds compiled programs to it and
rests on it where nothing can be compiled. Letters and mesh axes as in jaxprobe/mesh.py. A device is one chip.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxprobe.extract.forward import root_slots
from jaxprobe.extract.sums import moments_size, wave_size
from jaxprobe.extract.trie import Plan
from jaxprobe.host.machine import product_rate
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families.known import parameters
from jaxprobe.models.placement import parameter_bytes
from jaxprobe.probes.cholesky import in_feature_space
from jaxprobe.probes.moments import ROTATED
from jaxprobe.probes.packed import packing
from jaxprobe.probes.root import BLOCK, PANEL
from jaxprobe.probes.solve import folds_together

# A forward pass reaches at least this share of the rate of one large float32 product (CPUs: 0.76 to 0.90).
SHARE_OF_PRODUCT = 0.75
ITEM_BYTES = {"float32": 4, "bfloat16": 2}


class Collective(NamedTuple):
    """A collective operation of one device."""

    kind: str
    size: int  # bytes of its result; of a reduce-scatter, of its operand
    devices: int  # that take part
    times: int  # that it runs in one call of the program

    @property
    def sent(self) -> float:
        """Bytes that a device sends for all turns, by the ring algorithms."""
        share = (self.devices - 1) / self.devices
        moved = {"all-reduce": 2 * share, "collective-permute": 1.0, "all-to-all": share}.get(self.kind, share)
        return self.times * self.size * moved


class Program(NamedTuple):
    """What one call of a program takes of each device: counted from shapes, or as a compiler has it. Sizes in bytes."""

    name: str
    arguments: int
    outputs: int
    temporary: int
    peak: int  # what is there at once while it runs
    operations: float  # of its matrix products; a compiler also counts the rest, a loop's body times its turns
    traffic: float  # bytes read from and written to memory; 0 where it is not known
    collectives: tuple[Collective, ...] = ()
    compile_s: float = 0.0  # 0 where it was counted
    refused: str = ""  # the compiler's own words, where it found that memory does not suffice


class Step(NamedTuple):
    """One step of the forward."""

    bins: int  # B, over all devices
    slots: int  # T
    root: int  # R
    wanted: int  # W
    states: int


# ---- The forward ------------------------------------------------------------------------------------------------


def block_matrices(config: ModelConfig) -> dict[str, str]:
    """Parameter -> axes, of one block's weights that are multiplied with; gains and biases are not."""
    known = parameters(config).items()
    return {name: one.axes[1:] for name, one in known if one.in_block and one.kind == "matrix"}


def matrix_weights(config: ModelConfig) -> int:
    """Numbers in one block's weight matrices."""
    sizes = config.sizes()
    return sum(math.prod(sizes[letter] for letter in axes) for axes in block_matrices(config).values())


def keys_met(slots: int, root: int, platform: str) -> int:
    """Slots that a slot of a bin attends over, on average: the root's, and of its bin all, or (see `attend`) on a CPU
    half for the earlier half."""
    return root + (3 * slots // 4 if platform == "cpu" else slots)


def slot_operations(config: ModelConfig, keys: int) -> int:
    """Floating-point operations of the products of one slot in one block.

    The slot meets every weight in a multiplication and an addition, and each of its query heads meets ``keys`` slots
    (see `keys_met`), once for the scores and once for the values.
    """
    heads = config.kv_heads * config.queries_per_kv * config.head_width
    return 2 * (matrix_weights(config) + 2 * keys * heads)


def forward_operations(plan: Plan, config: ModelConfig) -> int:
    """Floating-point operations of the matrix products in the forward passes of a plan."""
    shapes = [batch.tokens.shape for shard in plan.shards for batch in shard.batches]
    keys = lambda slots: keys_met(slots, len(plan.root), "cpu")  # where it is asked for, see `forward_seconds`
    return config.layers * sum(bins * slots * slot_operations(config, keys(slots)) for bins, slots in shapes)


def forward_seconds(operations: float, mesh: Mesh) -> float | None:
    """How long so many operations take here, by the rate of a product.

    None on accelerators: how much of their rate a forward reaches depends on the model and the mesh.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return operations / (SHARE_OF_PRODUCT * product_rate())


def forward_steps(plan: Plan, states: int, mesh: Mapping[str, int], shares: int) -> list[Step]:
    """The step of each shape that a plan's batches have, of all shares side by side."""
    found = {}
    for batch in (batch for shard in plan.shards for batch in shard.batches):
        (bins, slots), wanted = batch.tokens.shape, batch.wanted.shape[1]
        wanted = -(-wanted // mesh.get("model", 1)) * mesh.get("model", 1)  # as `_put` fills it up
        found[bins, slots, wanted] = Step(shares * bins, slots, root_slots(plan.root), wanted, states)
    return list(found.values())


def count_step(config: ModelConfig, step: Step, mesh: Mapping[str, int], dtype: str, platform: str) -> Program:
    """The forward of ``step.bins`` bins, whose blocks run one after the other.

    Temporary memory is an upper bound on a CPU, and on GPUs within what the compiler allots and twice that.
    """
    data, model, item = mesh.get("data", 1) * mesh.get("fsdp", 1), mesh.get("model", 1), ITEM_BYTES[dtype]
    bins, keys, heads = (
        step.bins // data,
        keys_met(step.slots, step.root, platform),
        config.kv_heads * config.queries_per_kv,
    )
    numbers = bins * step.slots
    # Of one block: its weights (in float32 on a CPU, which widens them), the float32 stream, and what products give:
    # the weights' dtype between two of them on accelerators, see models/arithmetic.py.
    held, on_cpu, fsdp = matrix_weights(config) // model, platform == "cpu", mesh.get("fsdp", 1)
    weights, inside = held * (4 if on_cpu else item), 4 if on_cpu else item
    stream, inner = 4 * numbers * config.width, inside * numbers * config.mlp_width // model
    query, scores = inside * numbers * heads * config.head_width // model, 4 * numbers * keys * heads // model
    if on_cpu:
        # XLA copies all blocks' weights before the first: bfloat16 as bits, and over ``fsdp`` for their layout; and
        # the block's own once more, cut out of those of all blocks.
        copied = config.layers * held * item // fsdp if fsdp > 1 or item < 4 else 0
        temporary = copied + weights + 3 * stream + 2 * inner + 3 * query + 2 * scores
    else:
        # Attention and MLP take turns. A sum over ``model`` has operand and result beside the stream. Weights gathered
        # over ``fsdp`` are the block's, the next one's on their way, and those laid out for a product.
        streams, gathered = (5 if model > 1 else 3) * stream, 3 * weights if fsdp > 1 else 0
        temporary = gathered + streams + max(2 * inner, 3 * query + scores + scores // 2)
    outputs = step.states * bins * step.wanted * config.width * item // model
    root = 2 * config.layers * step.root * config.kv_heads * config.head_width * item // model
    arguments = parameter_bytes(config, mesh, dtype) + root
    # The stream is read and written about four times a block, each product's result twice.
    traffic = config.layers * (weights + 8 * stream + 4 * (inner + query + scores)) + outputs
    operations = config.layers * (numbers * slot_operations(config, keys) // model)
    collectives = _step_collectives(config, step, mesh, item)
    peak = arguments + temporary + outputs
    return Program("forward step", arguments, outputs, temporary, peak, operations, traffic, collectives)


def _step_collectives(config: ModelConfig, step: Step, mesh: Mapping[str, int], item: int) -> tuple[Collective, ...]:
    """Two sums of the residual stream over ``model`` and one gathering of a block's weights over ``fsdp``, a block."""
    fsdp, model = mesh.get("fsdp", 1), mesh.get("model", 1)
    stream = 4 * step.bins // (mesh.get("data", 1) * fsdp) * step.slots * config.width
    found = []
    if model > 1:
        found.append(Collective("all-reduce", stream, model, 2 * config.layers))
        found.append(Collective("all-reduce", stream * item // 4, model, 1))  # of the embedding
    if fsdp > 1:
        found.append(Collective("all-gather", matrix_weights(config) * item // model, fsdp, config.layers))
        found.append(Collective("all-to-all", stream * item // 4, fsdp, 1))
    return tuple(found)


# ---- Sums and fits ----------------------------------------------------------------------------------------------


def count_sums(states: int, rows: int, segments: int, width: int, targets: int, devices: int, dtype: str) -> Program:
    """Adding ``rows`` rows at once to the sums of its states (--no-store); each row is in one segment."""
    layers = -(-states // devices)
    operations = 2.0 * layers * rows * math.prod(packing(width, targets).rectangle)
    sums = moments_size(states, segments, width, targets, devices)
    shard = wave_size(states, rows, width, ITEM_BYTES[dtype], devices)
    # Beside the shard four float32 matrices, as the compiler has it for TPUs; the sums are changed in place.
    temporary = 4 * 4 * width**2
    peak, traffic = sums + shard + temporary, 3.0 * sums + 2 * shard
    return Program("sums (--no-store)", sums + shard, sums, temporary, peak, operations, traffic)


class Fit(NamedTuple):
    """What one state's probe takes."""

    operations: float  # of its products
    columns: int  # steps one after the other, each of one column: of all factorisations


WHITENED = 2  # penalties of a grid whose factor rounding spoilt, as a plan takes it (1 to 4 at one row a dimension)


def count_factor(width: int, below: int, platform: str) -> float:
    """Operations of `probes.root.factor`, with so many rows below the matrix."""
    if platform != "tpu":
        return width**3 / 3 + below * width**2
    before = np.arange(0, width, BLOCK)  # each block of columns, in panels of all rows from its own on
    rows = width + below - before // PANEL * PANEL + BLOCK
    return float(np.sum(2.0 * BLOCK * rows * (before + BLOCK)))


def count_inverse(width: int, platform: str) -> float:
    """Operations of `probes.root.inverse_root`; as many rows below on TPUs as a triangle has there."""
    return count_factor(width, width, platform) if platform != "tpu" else 2 * count_factor(width, 0, platform)


def count_ridge(rows: int, width: int, penalties: int, platform: str) -> dict[str, Fit]:
    """One state's probe from rows by the programs of `probes.solve.row_programs`; whitening is of one penalty.

    Products with the targets are left out: they are a thousandth.
    """
    if not in_feature_space(rows, width):
        one = count_inverse(rows, platform) + 4 * rows**2 * ROTATED  # the largest dimensions are put back
        return {
            "survey": Fit(0, 0),
            "normal equations": Fit(2 * rows**2 * width * 5 / 8, 0),  # the upper triangle, in strips
            "leave-one-out": Fit(penalties * one, penalties * rows),
            "weights": Fit(one, rows),
        }
    one, both = count_factor(width, rows, platform), rows + width
    return {
        "survey": Fit(0, 0),
        "normal equations": Fit(2 * rows * width**2 * 5 / 8, 0),
        "leave-one-out": Fit(penalties * one, penalties * width),
        # Two turns: a factor and what is below it; of the second also the product that it is made from.
        "whitening": Fit(2 * count_factor(width, both, platform) + 2 * both * width**2 * 5 / 8, 2 * width),
        "weights": Fit(one + count_inverse(width, platform), 2 * width),
    }


def count_fit(rows: int, width: int, penalties: int, platform: str) -> Fit:
    """All of one state's probe from rows."""
    each = count_ridge(rows, width, penalties, platform)
    times = {"whitening": WHITENED}
    operations = sum(times.get(name, 1) * fit.operations for name, fit in each.items())
    return Fit(operations, sum(times.get(name, 1) * fit.columns for name, fit in each.items()))


def count_fit_of_sums(width: int, folds: int, penalties: int, platform: str) -> Fit:
    """One state's probe from sums by `probes.solve.sums_programs`: a factor a fold and penalty, one for the weights."""
    turns = penalties * (1 if folds_together(width, platform) else folds)
    operations = folds * penalties * count_factor(width, 0, platform) + count_inverse(width, platform)
    return Fit(operations, width * (turns + 1))
