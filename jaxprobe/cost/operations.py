"""How much arithmetic an extraction is, known before it starts, and how long that takes where it can be said."""

import functools
import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxprobe.extract.trie import Plan
from jaxprobe.models.config import LlamaConfig
from jaxprobe.models.transformer import BLOCK_AXES

# A forward pass reaches at least this share of the rate of one large float32 product (CPUs: 0.76 to 0.90).
SHARE_OF_PRODUCT = 0.75
_SIDE, _REPEATS = 2048, 3


def matrix_weights(config: LlamaConfig) -> int:
    """Numbers in one block's weight matrices."""
    sizes = config.sizes()
    return sum(math.prod(sizes[axis] for axis in axes[1:]) for axes in BLOCK_AXES.values() if len(axes) > 2)


def keys_met(slots: int, root: int) -> int:
    """Slots that a slot of a bin attends over, on average: the root's, and of its bin half or all (see `attend`)."""
    return root + 3 * slots // 4


def slot_operations(config: LlamaConfig, keys: int) -> int:
    """Floating-point operations of the products of one slot in one block.

    The slot meets every weight in a multiplication and an addition, and each of its query heads meets ``keys`` slots
    (see `keys_met`), once for the scores and once for the values.
    """
    heads = config.kv_heads * config.queries_per_kv * config.head_width
    return 2 * (matrix_weights(config) + 2 * keys * heads)


class BlockBytes(NamedTuple):
    """Arrays of one block on one device, in bytes: float32, but for the weights."""

    weights: int
    stream: int  # the residual stream
    inner: int  # the MLP's
    query: int
    scores: int

    @property
    def temporary(self) -> int:
        """What a forward takes beside its parameters and results, at most: blocks run one after the other.

        The block's weights are there once more, cut out of those of all blocks and gathered over ``fsdp``.
        """
        return self.weights + 3 * self.stream + 2 * self.inner + 3 * self.query + 2 * self.scores


def block_bytes(
    config: LlamaConfig, bins: int, slots: int, keys: int, mesh: Mapping[str, int], itemsize: int
) -> BlockBytes:
    """Sizes for ``bins`` bins of a device, whose slots each meet ``keys`` slots; mesh axis -> size (default 1)."""
    model, numbers = mesh.get("model", 1), 4 * bins * slots
    heads = config.kv_heads * config.queries_per_kv
    return BlockBytes(
        matrix_weights(config) * itemsize // model,
        numbers * config.width,
        numbers * config.mlp_width // model,
        numbers * heads * config.head_width // model,
        numbers * keys * heads // model,
    )


def forward_operations(plan: Plan, config: LlamaConfig) -> int:
    """Floating-point operations of the matrix products in the forward passes of a plan."""
    shapes = [batch.tokens.shape for shard in plan.shards for batch in shard.batches]
    root = len(plan.root)
    return config.layers * sum(bins * slots * slot_operations(config, keys_met(slots, root)) for bins, slots in shapes)


def forward_seconds(operations: float, mesh: Mesh) -> float | None:
    """How long so many operations take here, by the rate of a product (timed once, a fifth of a second).

    None on accelerators: how much of their rate a forward reaches depends on the model and the mesh.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return operations / (SHARE_OF_PRODUCT * _product_rate())


@functools.cache  # a command that prepares several runs times it once
def _product_rate() -> float:
    """Operations of a large float32 product in a second."""
    matrix = jnp.ones((_SIDE, _SIDE), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    started = time.perf_counter()
    for _ in range(_REPEATS):
        product(matrix, matrix).block_until_ready()
    # A product uses all cores, so devices that share them add nothing.
    return _REPEATS * 2 * _SIDE**3 / (time.perf_counter() - started)
