"""How much arithmetic an extraction is, known before it starts, and how long that takes where it can be said."""

import functools
import math
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxprobe.extract.trie import Plan
from jaxprobe.models.config import LlamaConfig
from jaxprobe.models.llama import BLOCK_AXES

# A forward pass reaches at least this share of the rate of one large float32 product (CPUs: 0.76 to 0.90).
SHARE_OF_PRODUCT = 0.75
_SIDE, _REPEATS = 2048, 3


def matrix_weights(config: LlamaConfig) -> int:
    """Numbers in one block's weight matrices."""
    sizes = config.sizes()
    return sum(math.prod(sizes[axis] for axis in axes[1:]) for axes in BLOCK_AXES.values() if len(axes) > 2)


def slot_operations(config: LlamaConfig, keys: int) -> int:
    """Floating-point operations of the products of one slot in one block.

    The slot meets every weight in a multiplication and an addition, and each of its query heads meets ``keys`` slots
    (its bin's and the root's), once for the scores and once for the values.
    """
    heads = config.kv_heads * config.queries_per_kv * config.head_width
    return 2 * (matrix_weights(config) + 2 * keys * heads)


def forward_operations(plan: Plan, config: LlamaConfig) -> int:
    """Floating-point operations of the matrix products in the forward passes of a plan."""
    shapes = [batch.tokens.shape for shard in plan.shards for batch in shard.batches]
    root = len(plan.root)
    return config.layers * sum(bins * slots * slot_operations(config, slots + root) for bins, slots in shapes)


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
