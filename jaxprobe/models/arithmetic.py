"""What the platform, the dtype and the mesh ask of a product: chosen once, so that the block reads as on paper."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float


class Arithmetic(NamedTuple):
    """How a forward multiplies. Every product is an einsum in the weight's dtype, summed in float32."""

    product: Callable[..., Array]  # of anything, to float32
    inner: Callable[..., Array]  # with a weight, to what the next product in the block takes
    add: Callable[..., Array]  # with a weight, to what is added to the residual stream, where errors pile up
    pack: Callable[[Array], Array]  # all blocks' weights, before they are scanned
    unpack: Callable[[Array], Array]  # one block's, within the scan
    attention_parts: int  # in which a bin's slots attend, later keys being left out of earlier parts
    root_apart: bool  # whether attention scores the shared root once for all bins


def choose_arithmetic(mesh: Mesh, dtype: jnp.dtype) -> Arithmetic:
    """The arithmetic of a forward with weights of ``dtype`` on ``mesh``. The residual stream is float32 everywhere."""
    if mesh.devices.flat[0].platform != "cpu":
        return accelerator_arithmetic(dtype)
    if dtype != jnp.float32:
        # XLA widens the bfloat16 of all blocks, which lie in one array, before the first; bits it only copies.
        pack = lambda x: jax.lax.bitcast_convert_type(x, jnp.uint16)
        unpack = lambda x: jax.lax.bitcast_convert_type(x, dtype)
        return Arithmetic(_widened, _widened, _widened, pack, unpack, attention_parts=2, root_apart=False)
    whole = mesh.shape["model"] == mesh.shape["fsdp"] == 1
    add = project_blockwise if whole else _product
    return Arithmetic(_product, _product, add, _same, _same, attention_parts=2, root_apart=False)


def accelerator_arithmetic(dtype: jnp.dtype) -> Arithmetic:
    """What GPUs and TPUs run; a CPU can, for comparison.

    Products between weights give the weights' dtype: float32 gate and up of a 7B model would be 1.4 GB a block.
    """
    to_weights = functools.partial(_product, result=dtype)
    return Arithmetic(_product, to_weights, _product, _same, _same, attention_parts=1, root_apart=True)


def _same(x: Array) -> Array:
    return x


def _product(
    equation: str, x: Float[Array, "..."], weight: Float[Array, "..."], result: jnp.dtype = jnp.float32
) -> Float[Array, "..."]:
    """``highest``: the defaults on TPU (bfloat16 passes) and on recent GPUs (TF32) are far too coarse for float32."""
    x = x.astype(weight.dtype)
    return jnp.einsum(equation, x, weight, precision="highest", preferred_element_type=result)


def _widened(equation: str, x: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """float32 holds the product of two bfloat16 numbers exactly, and its own products are faster on a CPU by half."""
    x = x.astype(weight.dtype)
    return _product(equation, x.astype(jnp.float32), weight.astype(jnp.float32))


SUM_BLOCK = 256


def project_blockwise(equation: str, x: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """A product, its sums taken in blocks of at most 256 terms; for weights that are whole on every device.

    For CPUs: XLA adds a dot product's terms one after another there, so the rounding error grows with the square
    root of their number. On the demo model states then differ from PyTorch's by 1.2e-5 at worst (PyTorch's own from
    float64: 4.9e-6); with the two products that add to the residual stream in blocks, by 7e-6.
    """
    (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
    summed = [letter for letter in right if letter in left and letter not in out]
    terms = math.prod(weight.shape[right.index(letter)] for letter in summed)
    blocks = min(-(-terms // SUM_BLOCK), weight.shape[right.index(summed[0])])
    parts = zip(
        jnp.array_split(x, blocks, left.index(summed[0])),
        jnp.array_split(weight, blocks, right.index(summed[0])),
        strict=True,
    )
    return functools.reduce(jnp.add, (_product(equation, *part) for part in parts))
