"""A Llama-family transformer up to its last hidden state, as a Flax NNX module over packed bins.

Hidden states are return values: nothing is hooked, and there is no output head.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxprobe.mesh import spec
from jaxprobe.models.config import LlamaConfig
from jaxprobe.models.parts import attend, project, project_blockwise, rms_norm, rotary_tables, rotate

# parameter -> its axes. Blocks are stacked over L, so that the compiled program does not grow with depth.
BLOCK_AXES = {
    "attention_norm": "LD",
    "query": "LDKGH",
    "key": "LDKH",
    "value": "LDKH",
    "output": "LKGHD",
    "mlp_norm": "LD",
    "gate": "LDF",
    "up": "LDF",
    "down": "LFD",
}
MODEL_AXES = {"embedding": "VD", "final_norm": "D"}
KV_PARAMETERS = ("key", "value")  # held once for each of ``config.kv_copies``


class Blocks(nnx.Module):
    """The weights of all L blocks; a scan sees one block at a time."""

    def __init__(self, config: LlamaConfig, dtype: jnp.dtype, initializer: nnx.Initializer, rngs: nnx.Rngs):
        for name, axes in BLOCK_AXES.items():
            setattr(self, name, _parameter(name, axes, config, dtype, initializer, rngs))


class Llama(nnx.Module):
    """Weights by name; every array's axes stand in BLOCK_AXES and MODEL_AXES, its sharding follows from them."""

    def __init__(self, config: LlamaConfig, dtype: jnp.dtype, initializer: nnx.Initializer, rngs: nnx.Rngs):
        for name, axes in MODEL_AXES.items():
            setattr(self, name, _parameter(name, axes, config, dtype, initializer, rngs))
        self.blocks = Blocks(config, dtype, initializer, rngs)


def _parameter(name: str, axes: str, config: LlamaConfig, dtype, initializer, rngs: nnx.Rngs) -> nnx.Param:
    sizes, copies = config.sizes(), config.kv_copies if name in KV_PARAMETERS else 1
    shape = tuple(sizes[letter] // (copies if letter == "K" else 1) for letter in axes)
    # Norm gains start at one; they are the parameters with no axis but D (and L).
    init = nnx.initializers.ones if set(axes) <= {"L", "D"} else initializer
    values = init(rngs.params(), shape, dtype)
    if copies > 1:
        values = jnp.repeat(values, copies, axis=axes.index("K"))
    return nnx.Param(values, out_sharding=spec(axes))


def abstract_llama(config: LlamaConfig, mesh: Mesh, dtype: jnp.dtype) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's structure, and its parameters as shapes with shardings; nothing is allocated."""
    make = lambda: Llama(config, dtype, nnx.initializers.zeros, nnx.Rngs(0))
    with jax.set_mesh(mesh):
        return nnx.get_abstract_model(make, mesh)


def random_llama(config: LlamaConfig, mesh: Mesh, dtype: jnp.dtype, seed: int = 0) -> Llama:
    """The same architecture with random weights (normal, 0.02: the family's own), made on the devices."""
    graph, state = abstract_llama(config, mesh, dtype)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    make = lambda: nnx.state(Llama(config, dtype, nnx.initializers.normal(0.02), nnx.Rngs(seed)))
    with jax.set_mesh(mesh):
        return nnx.merge(graph, jax.jit(make, out_shardings=shardings)())


class Bins(NamedTuple):
    """B packed bins of T slots; slot s is an ancestor-or-self of slot t when ``s <= t < ends[s]``."""

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    ends: Int[Array, "B T"]
    wanted: Int[Array, "B W"]  # slots whose states are returned


class Root(NamedTuple):
    """Keys and values of the prefix that every entity shares; the first ``length`` of R slots count."""

    keys: Float[Array, "L R K H"]
    values: Float[Array, "L R K H"]
    length: Int[Array, ""]


class Forward(NamedTuple):
    """Hidden states at the wanted slots, and every slot's keys and values where they were asked for."""

    embed: Float[Array, "B W D"]
    blocks: Float[Array, "L B W D"]  # the residual stream after each block
    final_norm: Float[Array, "B W D"]
    keys: Float[Array, "L B T K H"] | None
    values: Float[Array, "L B T K H"] | None


def forward(
    model: Llama,
    config: LlamaConfig,
    bins: Bins,
    root: Root,
    *,
    mesh: Mesh,
    sums_in_blocks: bool,
    return_keys: bool = False,
) -> Forward:
    """Runs every bin and returns the wanted rows of every state, in float32.

    The residual stream is float32 whatever the weights' dtype: sums over many blocks then lose nothing, and
    the largest activations (1e4 and more in a few dimensions) keep their small neighbours.

    Args:
      mesh: that the weights are on; both the bins and the wanted rows divide over it.
      sums_in_blocks: add to the residual stream with `project_blockwise`; for weights that are whole on every device.
      return_keys: return every slot's keys and values too, which is how the root is made.
    """
    # The two products that add to the residual stream, where errors pile up from block to block.
    add = project_blockwise if sums_in_blocks else project
    slots = jnp.arange(bins.tokens.shape[1])
    causal = slots[None, :, None] >= slots[None, None, :]
    visible = causal & (slots[None, :, None] < bins.ends[:, None, :])
    root_visible = jnp.arange(root.keys.shape[1]) < root.length
    cosine, sine = rotary_tables(bins.positions, jnp.asarray(config.rope_frequencies, jnp.float32))
    placed = lambda x, *axes: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(*axes)))
    # Each device keeps a part of the wanted rows: all of them, on each, would take more room than the weights.
    rows = lambda x: placed(jnp.take_along_axis(x, bins.wanted[:, :, None], axis=1), "BWD")

    dtype = model.blocks.key[...].dtype
    # XLA on a CPU widens the bfloat16 of all blocks, which lie in one array, before the first; bits it only copies.
    hidden = dtype != jnp.float32 and mesh.devices.flat[0].platform == "cpu"
    as_bits = lambda x: jax.lax.bitcast_convert_type(x, jnp.uint16) if hidden else x
    as_weights = lambda x: jax.lax.bitcast_convert_type(x, dtype) if hidden else x
    stacks = {name: as_bits(getattr(model.blocks, name)[...]) for name in BLOCK_AXES}

    def block(x, layer):
        parameters, root_key, root_value = layer
        # One block's weights are gathered over ``fsdp`` when their turn comes. Left to itself, the partitioner keeps
        # D apart and adds up activations of all bins instead: 2.9 GB for each product of a 7B model, not 0.4 GB once.
        weights = {name: placed(as_weights(parameters[name]), axes[1:], "fsdp") for name, axes in BLOCK_AXES.items()}
        normed = rms_norm(x, weights["attention_norm"], config.norm_epsilon)
        query = rotate(project("BTD,DKGH->BTKGH", normed, weights["query"]), cosine, sine)
        key = rotate(project("BTD,DKH->BTKH", normed, weights["key"]), cosine, sine).astype(dtype)
        value = project("BTD,DKH->BTKH", normed, weights["value"]).astype(dtype)
        mixed = attend(query, key, value, visible, root_key, root_value, root_visible)
        x = x + add("BTKGH,KGHD->BTD", mixed, weights["output"])
        normed = rms_norm(x, weights["mlp_norm"], config.norm_epsilon)
        gate, up = (project("BTD,DF->BTF", normed, weights[name]) for name in ("gate", "up"))
        x = x + add("BTF,FD->BTD", jax.nn.silu(gate) * up, weights["down"])
        return placed(x, "BTD"), (rows(x), (key, value) if return_keys else None)

    # A device looks up its own columns for all bins of its ``fsdp`` group, which then change places: left to itself,
    # the partitioner gathers the whole table over ``model``.
    columns = model.embedding[...][placed(bins.tokens, "BT", "fsdp")]
    columns = jax.lax.with_sharding_constraint(columns, NamedSharding(mesh, PartitionSpec("data", None, "fsdp")))
    x = placed(columns, "BTD").astype(jnp.float32)
    embed = rows(x)
    x, (blocks, keys) = jax.lax.scan(block, x, (stacks, root.keys, root.values))
    final = rms_norm(rows(x), model.final_norm[...], config.norm_epsilon)
    return Forward(embed, blocks, final, *(keys or (None, None)))
