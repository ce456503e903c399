"""The arithmetic of a Llama block as pure functions. Letters as in jaxprobe/mesh.py."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def project(equation: str, x: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """An einsum in the weight's dtype, summed in float32.

    ``highest``: the defaults on TPU (bfloat16 passes) and on recent GPUs (TF32) are far too coarse for float32.
    """
    multiply = functools.partial(jnp.einsum, equation, precision="highest", preferred_element_type=jnp.float32)
    x = x.astype(weight.dtype)
    if weight.dtype == jnp.float32:
        return multiply(x, weight)
    # float32 holds the product of two bfloat16 numbers exactly, and its own products are faster on a CPU by half.
    widened = lambda x, weight: multiply(x.astype(jnp.float32), weight.astype(jnp.float32))
    return jax.lax.platform_dependent(x, weight, cpu=widened, default=multiply)


SUM_BLOCK = 256


def project_blockwise(equation: str, x: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """`project`, its sums taken in blocks of at most 256 terms.

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
    return functools.reduce(jnp.add, (project(equation, *part) for part in parts))


def rms_norm(x: Float[Array, "... D"], gain: Float[Array, " D"], epsilon: float) -> Float[Array, "... D"]:
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)
    return x * scale * gain.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + gain.shape)


def rotary_tables(
    positions: Int[Array, "B T"], frequencies: Float[Array, " half"]
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosine and sine of every slot's angles."""
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T *heads H"], cosine: Float[Array, "B T half"], sine: Float[Array, "B T half"]
) -> Float[Array, "B T *heads H"]:
    """Turns each pair (x[i], x[i + H/2]) by its slot's angle: the pairing of Hugging Face's checkpoints."""
    over_heads = tuple(range(2, x.ndim - 1))
    cosine, sine = jnp.expand_dims(cosine, over_heads), jnp.expand_dims(sine, over_heads)
    low, high = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1)


def attend(
    query: Float[Array, "B T K G H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    visible: Bool[Array, "B T T"],
    root_key: Float[Array, "R K H"],
    root_value: Float[Array, "R K H"],
    root_visible: Bool[Array, " R"],
) -> Float[Array, "B T K G H"]:
    """Attention of every slot to the shared root and to its ancestors in its own bin.

    Heads go before slots, so that each product is a plain batch of matrices: on a CPU that is a third faster. No slot
    sees a later one, so the earlier half of the slots leaves the later half's keys out, a quarter of the products
    (quarters instead of halves were not faster).
    """
    (bins, slots), root = query.shape[:2], len(root_visible)
    by_head = lambda x: jnp.swapaxes(x, 1, 2)
    before = lambda root: jnp.broadcast_to(jnp.swapaxes(root, 0, 1)[None], (bins, *jnp.swapaxes(root, 0, 1).shape))
    keys = jnp.concatenate([before(root_key), by_head(key)], axis=2)
    values = jnp.concatenate([before(root_value), by_head(value)], axis=2)
    visible = jnp.concatenate([jnp.broadcast_to(root_visible[None, None], (bins, slots, root)), visible], axis=2)
    query = jnp.moveaxis(query, 1, 3) / jnp.sqrt(jnp.float32(query.shape[-1]))

    def mix(first: int, stop: int) -> Float[Array, "B K G part H"]:
        """For slots from ``first``: they see the root, and slots before ``stop``."""
        seen = root + stop
        scores = project("BKGTH,BKSH->BKGTS", query[..., first:stop, :], keys[:, :, :seen])
        scores = jnp.where(visible[:, None, None, first:stop, :seen], scores, -jnp.inf)
        # A slot sees itself, so the maximum is finite.
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        # Dividing after the product divides H numbers a slot instead of R + S.
        return project("BKGTS,BKSH->BKGTH", weights, values[:, :, :seen]) / weights.sum(-1, keepdims=True)

    half = -(-slots // 2)
    return jnp.moveaxis(jnp.concatenate([mix(0, half), mix(half, slots)], axis=3), 3, 1)
