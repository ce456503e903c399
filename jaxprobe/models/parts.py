"""The parts of a block as pure functions. Letters as in jaxprobe/mesh.py."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxprobe.models.arithmetic import Arithmetic


def rms_norm(
    x: Float[Array, "..."], gain: Float[Array, "..."], epsilon: float, offset: float = 0.0
) -> Float[Array, "..."]:
    """x over its root mean square, taken over the axes that ``gain`` has, times ``gain`` (+ ``offset``, in float32)."""
    axes = tuple(range(x.ndim - gain.ndim, x.ndim))
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=axes, keepdims=True) + epsilon)
    gain = gain.astype(jnp.float32).reshape((1,) * (x.ndim - gain.ndim) + gain.shape)
    return x * scale * (gain + offset if offset else gain)


def layer_norm(
    x: Float[Array, "... D"], gain: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float
) -> Float[Array, "... D"]:
    """x minus its mean, over its standard deviation, times ``gain`` plus ``bias``."""
    leading = (1,) * (x.ndim - 1)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    gain, bias = (one.astype(jnp.float32).reshape(leading + one.shape) for one in (gain, bias))
    return centred * scale * gain + bias


def add_bias(x: Float[Array, "..."], bias: Float[Array, "..."] | None) -> Float[Array, "..."]:
    """x plus a bias over its last axes, where there is one."""
    if bias is None:
        return x
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


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
    *,
    divisor: Float[Array, ""],
    cap: float | None,
    arithmetic: Arithmetic,
) -> Float[Array, "B T K G H"]:
    """Attention of every slot to the shared root and to its ancestors in its own bin.

    Heads go before slots, so that each product is a plain batch of matrices: on a CPU that is a third faster. No slot
    sees a later one, so there the earlier half of the slots leaves the later half's keys out, a quarter of the
    products (quarters instead of halves were not faster).

    Where the arithmetic says so the root is scored apart, in one product for the slots of all bins, and the two are
    merged by the sums of their exponentials: no bin has a copy of the root's keys then. Exact.
    Source: Juravsky et al. (2024), "Hydragen: High-Throughput LLM Inference with Shared Prefixes", section 3.2.

    Args:
      divisor: of the scores.
      cap: of the scores: c tanh(score / c); None for none.
      arithmetic: how products are taken, in how many parts the slots attend, and whether the root is scored apart.
    """
    (bins, slots), root = query.shape[:2], len(root_visible)
    by_head = lambda x: jnp.swapaxes(x, 1, 2)
    keys, values, shared = by_head(key), by_head(value), None
    query = jnp.moveaxis(query, 1, 3) / divisor
    every = lambda root: jnp.broadcast_to(root_visible[None, None], (bins, slots, root))
    soft = lambda *of, letters: _exponentials(*of, letters, cap, arithmetic)
    if arithmetic.root_apart and root:
        shared = soft(query, jnp.swapaxes(root_key, 0, 1), jnp.swapaxes(root_value, 0, 1), every(root), letters="KSH")
        root = 0
    else:
        before = lambda root: jnp.broadcast_to(jnp.swapaxes(root, 0, 1)[None], (bins, *jnp.swapaxes(root, 0, 1).shape))
        keys = jnp.concatenate([before(root_key), keys], axis=2)
        values = jnp.concatenate([before(root_value), values], axis=2)
        visible = jnp.concatenate([every(root), visible], axis=2)

    def mix(first: int, stop: int) -> Float[Array, "B K G part H"]:
        """For slots from ``first``: they see the root, and slots before ``stop``."""
        seen = root + stop
        part = query[..., first:stop, :], keys[:, :, :seen], values[:, :, :seen], visible[:, first:stop, :seen]
        mixed, total, most = soft(*part, letters="BKSH")
        if shared is not None:
            # Exponentials were taken of the scores less their largest; here it is that of both.
            of_root, total_of_root, most_of_root = (leaf[..., first:stop, :] for leaf in shared)
            largest = jnp.maximum(most, most_of_root)
            own, other = jnp.exp(most - largest), jnp.exp(most_of_root - largest)
            mixed, total = mixed * own + of_root * other, total * own + total_of_root * other
        # Dividing after the product divides H numbers a slot instead of R + S.
        return mixed / total

    edges = [-(-slots * part // arithmetic.attention_parts) for part in range(arithmetic.attention_parts + 1)]
    mixed = [mix(first, stop) for first, stop in itertools.pairwise(edges)]
    return jnp.moveaxis(jnp.concatenate(mixed, axis=3), 3, 1)


def _exponentials(
    query: Float[Array, "B K G T H"],
    key: Float[Array, "*B K S H"],
    value: Float[Array, "*B K S H"],
    visible: Bool[Array, "B T S"],
    letters: str,
    cap: float | None,
    arithmetic: Arithmetic,
) -> tuple[Float[Array, "B K G T H"], Float[Array, "B K G T 1"], Float[Array, "B K G T 1"]]:
    """(values weighed by exp(score - largest), the sum of the weights, the largest score); ``letters`` of the keys."""
    scores = arithmetic.product(f"BKGTH,{letters}->BKGTS", query, key)
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    scores = jnp.where(visible[:, None, None], scores, -jnp.inf)
    largest = scores.max(-1, keepdims=True)
    if letters == "KSH":  # a slot sees itself, but of a root it may see nothing
        largest = jnp.maximum(largest, jnp.finfo(scores.dtype).min)
    weights = jnp.exp(scores - largest)
    return arithmetic.product(f"BKGTS,{letters}->BKGTH", weights, value), weights.sum(-1, keepdims=True), largest
