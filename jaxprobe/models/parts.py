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

    Args:
      divisor: of the scores.
      cap: of the scores: c tanh(score / c); None for none.
      arithmetic: how products are taken, and in how many parts the slots attend.
    """
    (bins, slots), root = query.shape[:2], len(root_visible)
    by_head = lambda x: jnp.swapaxes(x, 1, 2)
    before = lambda root: jnp.broadcast_to(jnp.swapaxes(root, 0, 1)[None], (bins, *jnp.swapaxes(root, 0, 1).shape))
    keys = jnp.concatenate([before(root_key), by_head(key)], axis=2)
    values = jnp.concatenate([before(root_value), by_head(value)], axis=2)
    visible = jnp.concatenate([jnp.broadcast_to(root_visible[None, None], (bins, slots, root)), visible], axis=2)
    query = jnp.moveaxis(query, 1, 3) / divisor

    def mix(first: int, stop: int) -> Float[Array, "B K G part H"]:
        """For slots from ``first``: they see the root, and slots before ``stop``."""
        seen = root + stop
        scores = arithmetic.product("BKGTH,BKSH->BKGTS", query[..., first:stop, :], keys[:, :, :seen])
        if cap is not None:
            scores = cap * jnp.tanh(scores / cap)
        scores = jnp.where(visible[:, None, None, first:stop, :seen], scores, -jnp.inf)
        # A slot sees itself, so the maximum is finite.
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        # Dividing after the product divides H numbers a slot instead of R + S.
        mixed = arithmetic.product("BKGTS,BKSH->BKGTH", weights, values[:, :, :seen])
        return mixed / weights.sum(-1, keepdims=True)

    edges = [-(-slots * part // arithmetic.attention_parts) for part in range(arithmetic.attention_parts + 1)]
    mixed = [mix(first, stop) for first, stop in itertools.pairwise(edges)]
    return jnp.moveaxis(jnp.concatenate(mixed, axis=3), 3, 1)
