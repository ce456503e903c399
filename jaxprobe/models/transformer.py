"""A decoder up to its last hidden state, as a Flax NNX module over packed bins. It names no family.

Hidden states are return values and edits are arguments: nothing is hooked. Which parameters a block has is the
family's to say; the block here runs what is there.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxprobe.mesh import spec
from jaxprobe.models.arithmetic import Arithmetic, choose_arithmetic
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families.family import Parameter
from jaxprobe.models.families.known import parameters
from jaxprobe.models.parts import ACTIVATIONS, add_bias, attend, layer_norm, rms_norm, rotary_tables, rotate
from jaxprobe.sites import Site, parse_sites

# ---- Weights ------------------------------------------------------------------------------------------------------


class Blocks(nnx.Module):
    """The weights of all L blocks, stacked, so that the compiled program does not grow with depth."""

    down: nnx.Param  # and the others that the family's `parameters` names

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, spread: float, rngs: nnx.Rngs):
        for name, parameter in parameters(config).items():
            if parameter.in_block:
                setattr(self, name, _start(parameter, config, dtype, spread, rngs))


class Transformer(nnx.Module):
    """Weights by name; their axes are the family's `parameters`, and their shardings follow from these."""

    embedding: nnx.Param
    positions: nnx.Param  # where there is a table of them
    blocks: Blocks

    def __init__(self, config: ModelConfig, dtype: jnp.dtype, spread: float, rngs: nnx.Rngs):
        for name, parameter in parameters(config).items():
            if not parameter.in_block:
                setattr(self, name, _start(parameter, config, dtype, spread, rngs))
        self.blocks = Blocks(config, dtype, spread, rngs)

    @property
    def dtype(self) -> jnp.dtype:
        return self.embedding[...].dtype


def _start(parameter: Parameter, config: ModelConfig, dtype: jnp.dtype, spread: float, rngs: nnx.Rngs) -> nnx.Param:
    """A parameter before training: matrices are normal, gains one, biases zero."""
    copies = config.kv_copies if parameter.per_kv_head else 1
    sizes = config.file_sizes() if parameter.per_kv_head else config.sizes()
    initializer = {
        "matrix": nnx.initializers.normal(spread * parameter.spread),
        "gain": nnx.initializers.constant(1.0 - config.gain_offset),
        "bias": nnx.initializers.zeros,
    }[parameter.kind]
    values = initializer(rngs.params(), tuple(sizes[letter] for letter in parameter.axes), dtype)
    if copies > 1:
        values = jnp.repeat(values, copies, axis=parameter.axes.index("K"))
    return nnx.Param(values, out_sharding=spec(parameter.axes))


def abstract_weights(config: ModelConfig, mesh: Mesh, dtype: jnp.dtype) -> tuple[nnx.GraphDef, nnx.State]:
    """The model's structure, and its parameters as shapes with shardings; nothing is allocated."""
    make = lambda: Transformer(config, dtype, 0.0, nnx.Rngs(0))
    with jax.set_mesh(mesh):
        return nnx.get_abstract_model(make, mesh)


def random_weights(config: ModelConfig, mesh: Mesh, dtype: jnp.dtype, seed: int = 0) -> Transformer:
    """The same architecture before training, with the checkpoint's own spread of matrices, made on the devices."""
    graph, _ = abstract_weights(config, mesh, dtype)
    key = np.asarray(jax.random.key_data(jax.random.key(seed)))  # in NumPy, as the mesh may be of several processes
    with jax.set_mesh(mesh):
        return nnx.merge(graph, _compiled_start(config, mesh, jnp.dtype(dtype))(key))


@functools.lru_cache(maxsize=4)
def _compiled_start(config: ModelConfig, mesh: Mesh, dtype: jnp.dtype) -> Callable[[np.ndarray], nnx.State]:
    """The parameters before training, by a random key: one program for every seed."""
    _, state = abstract_weights(config, mesh, dtype)

    def make(key: Array) -> nnx.State:
        rngs = nnx.Rngs(jax.random.wrap_key_data(key))
        return nnx.state(Transformer(config, dtype, config.initializer_range, rngs))

    return jax.jit(make, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, state))


# ---- What goes in and comes out -----------------------------------------------------------------------------------


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


def no_root(config: ModelConfig, dtype: jnp.dtype) -> Root:
    """The root of bins that share nothing."""
    none = jnp.zeros((config.layers, 0, config.kv_heads, config.head_width), dtype)
    return Root(none, none, jnp.int32(0))


class Edits(NamedTuple):
    """After block l the stream x becomes ``x + write_l (target_l - read_l' x)``; zeros leave it as it is.

    The same edit at every slot keeps the prefix trie exact, as long as the root is run with it too.
    """

    read: Float[Array, "L D r"]
    write: Float[Array, "L D r"]
    target: Float[Array, "L r"] | Float[Array, "L B T r"]
    slots: Bool[Array, "B T"] | None = None  # where; None: everywhere


def _by_kind(sites: Sequence[str]) -> dict[str, list[int]]:
    """Kind of site -> its blocks, in order. Raises InputError for what is no site."""
    found: dict[str, list[int]] = {}
    for site in parse_sites(sites):
        found.setdefault(site.kind, []).append(-1 if site.layer is None else site.layer)
    return found


class Forward(NamedTuple):
    """States at the wanted slots, the whole stream after the last block, and keys and values where asked for."""

    stacks: dict[str, Array]  # kind of site (see jaxprobe/sites.py) -> [n B W D], of "mlp" [n B W F]
    stream: Float[Array, "B T D"]
    keys: Float[Array, "L B T K H"] | None
    values: Float[Array, "L B T K H"] | None

    def states(self, sites: Sequence[str]) -> dict[str, Array]:
        """Site -> [B W D], of "mlp.L" [B W F], for the sites that the forward was asked for."""
        found: dict[str, Array] = {}
        for site in parse_sites(sites):
            place = sum(Site.parse(name).kind == site.kind for name in found)
            found[str(site)] = self.stacks[site.kind][place]
        return {site: found[str(site)] for site in sites}


# ---- The forward --------------------------------------------------------------------------------------------------


def forward(
    weights: Transformer,
    config: ModelConfig,
    bins: Bins,
    root: Root,
    *,
    mesh: Mesh,
    sites: tuple[str, ...] = (),
    edits: Edits | None = None,
    return_keys: bool = False,
    states_dtype: jnp.dtype = jnp.float32,
) -> Forward:
    """Runs every bin; what no site asks for is not computed.

    The residual stream is float32 whatever the weights' dtype: sums over many blocks then lose nothing, and
    the largest activations (1e4 and more in a few dimensions) keep their small neighbours.

    Args:
      weights: on ``mesh``.
      config: static.
      bins: what to run; bins and wanted rows divide over the mesh.
      root: what every bin starts from; `no_root` for nothing.
      mesh: that the weights are on.
      sites: static: ``embed``, ``12`` (the stream after block 12, edited), ``12.mid`` (between its attention and its
        MLP), ``mlp.12`` (its neurons, act(gate) * up) and ``final_norm``.
      edits: of the stream, after each block.
      return_keys: return every slot's keys and values too, which is how the root is made.
      states_dtype: of the states.

    Raises:
      ValueError: a site that the model does not have.

    Example::

        sites = ("3", "mlp.3", "final_norm")
        run = jax.jit(lambda w, b, r: forward(w, config, b, r, mesh=mesh, sites=sites))
        found = run(model.weights, bins, no_root(config, model.weights.dtype))
        found.states(sites)["mlp.3"]  # [B W F]

    It can be differentiated in ``weights`` (`jax.value_and_grad`) and in ``edits``.
    """
    x = embed(weights, config, bins, mesh)
    embedded = {"embed": _rows(x, bins, mesh).astype(states_dtype)[None]} if "embed" in sites else {}
    result = run_blocks(
        weights,
        config,
        x,
        bins,
        root,
        mesh=mesh,
        sites=tuple(site for site in sites if site != "embed"),
        edits=edits,
        return_keys=return_keys,
        states_dtype=states_dtype,
    )
    return result._replace(stacks=embedded | result.stacks)


def embed(weights: Transformer, config: ModelConfig, bins: Bins, mesh: Mesh) -> Float[Array, "B T D"]:
    """The stream before block 0, float32."""
    # A device looks up its own columns for all bins of its ``fsdp`` group, which then change places: left to itself,
    # the partitioner gathers the whole table over ``model``.
    look_up = lambda table, index: jax.lax.with_sharding_constraint(
        table[...][_placed(index, mesh, "BT", "fsdp")], NamedSharding(mesh, PartitionSpec("data", None, "fsdp"))
    )
    x = _placed(look_up(weights.embedding, bins.tokens), mesh, "BTD").astype(jnp.float32)
    if config.embedding_scale != 1.0:
        # As the families' own code has it: the factor is a number of the weights' dtype.
        x = x * jnp.asarray(config.embedding_scale, weights.dtype).astype(jnp.float32)
    if config.positions:
        x = x + _placed(look_up(weights.positions, bins.positions), mesh, "BTD").astype(jnp.float32)
    return x


def run_blocks(
    weights: Transformer,
    config: ModelConfig,
    x: Float[Array, "B T D"],
    bins: Bins,
    root: Root,
    *,
    mesh: Mesh,
    first: int | Int[Array, ""] = 0,
    last: Int[Array, ""] | None = None,
    sites: tuple[str, ...] = (),
    edits: Edits | None = None,
    return_keys: bool = False,
    states_dtype: jnp.dtype = jnp.float32,
) -> Forward:
    """Goes on from the stream before block ``first``.

    Args:
      x: the stream of every slot before block ``first``, float32: `embed`, or the state ``str(first - 1)`` of bins
        that want all slots, with rows replaced.
      first: a number, or a traced one, with which one program serves every block: the stream of earlier blocks is
        then ``x``, and their neurons are zeros.
      last: with a traced ``first``, the last block that is run, traced too; default: all of them.
      sites: without ``embed``, none before ``first`` where that is a number; the rest as in `forward`.

    Raises:
      ValueError: a site that is not computed.

    Example: slot 5 of bin 0 has another state after block 2, and blocks 3 and later see it::

        every = bins._replace(wanted=jnp.broadcast_to(jnp.arange(slots), (count, slots)))
        clean = forward(weights, config, every, root, mesh=mesh, sites=("2",)).states(("2",))["2"]
        edited = run_blocks(weights, config, clean.at[0, 5].set(row), bins, root, mesh=mesh, first=3,
                            sites=("final_norm",)).states(("final_norm",))["final_norm"]
    """
    wanted, arithmetic = _by_kind(sites), choose_arithmetic(mesh, weights.dtype)
    traced = not isinstance(first, int)
    begin = 0 if traced else first
    _check_sites(wanted, config, begin)
    if traced and return_keys:
        raise ValueError("with a traced first block there are no keys of the blocks before it")
    slots = _slots(config, bins, root)
    rows = lambda values: _rows(values, bins, mesh).astype(states_dtype)

    def step(x: Array, layer: Layer) -> tuple[Array, tuple]:
        x, inside = block(x, layer, slots, config, arithmetic, mesh)
        if layer.edit is not None:
            x = _edit(x, layer.edit, edits.slots)
        every = {"block": x, "mid": inside.mid, "mlp": inside.mlp}
        states = {kind: rows(values) for kind, values in every.items() if kind in wanted}
        return x, (states, (inside.key, inside.value) if return_keys else None)

    def step_from_first(x: Array, layer: Layer) -> tuple[Array, tuple]:
        kept, _ = jax.eval_shape(step, x, layer)[1]
        same = {kind: jnp.zeros(s.shape, s.dtype) if kind == "mlp" else rows(x) for kind, s in kept.items()}
        runs = layer.index >= first if last is None else (layer.index >= first) & (layer.index <= last)
        return jax.lax.cond(runs, step, lambda x, _: (x, (same, None)), x, layer)

    layers = jax.tree.map(lambda leaf: leaf[begin:], _layers(weights, config, root, edits, arithmetic))
    x, (stacks, keys) = jax.lax.scan(step_from_first if traced else step, x, layers)
    for kind, values in stacks.items():
        chosen = [layer - begin for layer in wanted[kind]]
        if chosen != list(range(len(values))):
            stacks[kind] = values[jnp.array(chosen)]
    if "final_norm" in wanted:
        stacks["final_norm"] = normalise(_rows(x, bins, mesh), weights, "final_norm", config).astype(states_dtype)[None]
    return Forward(stacks, x, *(keys or (None, None)))


def _check_sites(wanted: dict[str, list[int]], config: ModelConfig, first: int) -> None:
    layers = [layer for kind in ("block", "mid", "mlp") for layer in wanted.get(kind, ())]
    if "embed" in wanted:
        raise ValueError("the embedding comes before every block")
    if layers and not first <= min(layers) <= max(layers) < config.layers:
        raise ValueError(f"sites of blocks {min(layers)} to {max(layers)}; run are {first} to {config.layers - 1}")
    if "mid" in wanted and config.parallel:
        raise ValueError("attention and MLP of this model read one stream: there is none between them")


# ---- One block ----------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """What a scan hands to one block: its weights and all else that differs between blocks."""

    index: Int[Array, ""]
    weights: dict[str, Array]
    root_key: Float[Array, "R K H"]
    root_value: Float[Array, "R K H"]
    rotary: Int[Array, ""] | None  # which of the tables; None where there is one, or none
    divisor: Float[Array, ""] | None  # of scores; None where all blocks have one
    edit: tuple[Array, Array, Array] | None


class Slots(NamedTuple):
    """What all blocks know of the bins' slots."""

    visible: Bool[Array, "B T T"]
    root_visible: Bool[Array, " R"]
    tables: list[tuple[Float[Array, "B T half"], Float[Array, "B T half"]]]  # cosine and sine of each rotary


class Inside(NamedTuple):
    """What stands inside a block."""

    mid: Float[Array, "B T D"]
    mlp: Float[Array, "B T F"]
    key: Float[Array, "B T K H"]
    value: Float[Array, "B T K H"]


def _layers(
    weights: Transformer, config: ModelConfig, root: Root, edits: Edits | None, arithmetic: Arithmetic
) -> Layer:
    """All blocks, stacked."""
    names = [name for name, parameter in parameters(config).items() if parameter.in_block]
    several = len(config.rotaries) > 1
    uneven = len(set(config.score_divisors)) > 1
    return Layer(
        jnp.arange(config.layers),
        {name: arithmetic.pack(getattr(weights.blocks, name)[...]) for name in names},
        root.keys,
        root.values,
        jnp.array(config.rotary_of_layer[: config.layers]) if several else None,
        jnp.array(config.score_divisors[: config.layers], jnp.float32) if uneven else None,
        None if edits is None else (edits.read, edits.write, edits.target),
    )


def _slots(config: ModelConfig, bins: Bins, root: Root) -> Slots:
    slots = jnp.arange(bins.tokens.shape[1])
    causal = slots[None, :, None] >= slots[None, None, :]
    visible = causal & (slots[None, :, None] < bins.ends[:, None, :])
    tables = []
    for rotary in config.rotaries:
        cosine, sine = rotary_tables(bins.positions, jnp.asarray(rotary.frequencies, jnp.float32))
        if set(rotary.amplitudes) != {1.0}:
            amplitude = jnp.asarray(rotary.amplitudes, jnp.float32)[None, None, :]
            cosine, sine = cosine * amplitude, sine * amplitude
        tables.append((cosine, sine))
    return Slots(visible, jnp.arange(root.keys.shape[1]) < root.length, tables)


def block(
    x: Float[Array, "B T D"],
    layer: Layer,
    slots: Slots,
    config: ModelConfig,
    arithmetic: Arithmetic,
    mesh: Mesh,
) -> tuple[Float[Array, "B T D"], Inside]:
    """One block: the stream after it, and what stands inside. A norm, a bias or a gate is where its weight is."""
    axes = {name: parameter.axes[1:] for name, parameter in parameters(config).items() if parameter.in_block}
    # One block's weights are gathered over ``fsdp`` when their turn comes. Left to itself, the partitioner keeps
    # D apart and adds up activations of all bins instead: 2.9 GB for each product of a 7B model, not 0.4 GB once.
    unpacked = {name: arithmetic.unpack(value) for name, value in layer.weights.items()}
    w = {name: _placed(value, mesh, axes[name], "fsdp") for name, value in unpacked.items()}
    normed = lambda x, name: normalise(x, w, name, config) if name in w else x
    linear = lambda equation, x, name: add_bias(arithmetic.inner(equation, x, w[name]), w.get(f"{name}_bias"))
    add = lambda equation, x, name: add_bias(arithmetic.add(equation, x, w[name]), w.get(f"{name}_bias"))

    def attention(x: Array) -> tuple[Array, Array, Array]:
        turn = _turn(layer, slots)
        query = turn(normed(linear("BTD,DKGH->BTKGH", x, "query"), "query_norm"))
        key = turn(normed(linear("BTD,DKH->BTKH", x, "key"), "key_norm")).astype(weights_dtype)
        value = linear("BTD,DKH->BTKH", x, "value").astype(weights_dtype)
        mixed = attend(
            query,
            key,
            value,
            slots.visible,
            layer.root_key,
            layer.root_value,
            slots.root_visible,
            divisor=jnp.float32(config.score_divisors[0]) if layer.divisor is None else layer.divisor,
            cap=config.score_cap,
            arithmetic=arithmetic,
        )
        return normed(add("BTKGH,KGHD->BTD", mixed, "output"), "attention_out_norm"), key, value

    def neurons(x: Array) -> Array:
        act = ACTIVATIONS[config.activation]
        up = linear("BTD,DF->BTF", x, "up").astype(jnp.float32)
        return act(linear("BTD,DF->BTF", x, "gate").astype(jnp.float32)) * up if "gate" in w else act(up)

    weights_dtype = w["key"].dtype
    attended, key, value = attention(normed(x, "attention_norm"))
    mid = x + attended
    mlp = neurons(normed(x if config.parallel else mid, "mlp_norm"))
    x = mid + normed(add("BTF,FD->BTD", mlp, "down"), "mlp_out_norm")
    return _placed(x, mesh, "BTD"), Inside(mid, mlp, key, value)


def _turn(layer: Layer, slots: Slots):
    """What puts positions into queries and keys of this block."""
    if not slots.tables:
        return lambda x: x.astype(jnp.float32)
    cosine, sine = slots.tables[0]
    if layer.rotary is not None:
        cosine, sine = (jnp.stack(each)[layer.rotary] for each in zip(*slots.tables, strict=True))
    return lambda x: rotate(x.astype(jnp.float32), cosine, sine)


def normalise(
    x: Float[Array, "..."], weights: Transformer | dict[str, Array], name: str, config: ModelConfig
) -> Float[Array, "..."]:
    """The norm called ``name``: over the axes of its gain."""
    get = weights.get if isinstance(weights, dict) else lambda name: getattr(weights, name)[...]
    x = x.astype(jnp.float32)
    if config.norm == "layer":
        return layer_norm(x, get(name), get(f"{name}_bias"), config.norm_epsilon)
    return rms_norm(x, get(name), config.norm_epsilon, config.gain_offset)


def _edit(x: Float[Array, "B T D"], edit: tuple[Array, Array, Array], where: Array | None) -> Float[Array, "B T D"]:
    read, write, target = edit
    exact = lambda equation, *of: jnp.einsum(equation, *of, precision="highest")
    missing = target[(None,) * (3 - target.ndim)] - exact("BTD,Dr->BTr", x, read)
    edited = x + exact("BTr,Dr->BTD", missing, write)
    return edited if where is None else jnp.where(where[..., None], edited, x)


def _placed(x: Array, mesh: Mesh, axes: str, gathered: str = "") -> Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(axes, gathered)))


def _rows(x: Float[Array, "B T D"], bins: Bins, mesh: Mesh) -> Float[Array, "B W D"]:
    """The wanted slots. Each device keeps a part of them: all, on each, would take more room than the weights."""
    return _placed(jnp.take_along_axis(x, bins.wanted[:, :, None], axis=1), mesh, "BWD")


# ---- The output head ----------------------------------------------------------------------------------------------


def logits(
    weights: Transformer,
    config: ModelConfig,
    x: Float[Array, "... D"],
    *,
    mesh: Mesh,
    tokens: Int[Array, " U"] | None = None,
) -> Float[Array, "... V"]:
    """Logits of rows of the stream after the last block; the final norm is taken here.

    Args:
      weights: of a model loaded with ``head=True``.
      x: the state ``str(config.layers - 1)``, at any slots.
      tokens: those wanted, of which the head's rows alone are multiplied: [..., U] in the place of [..., V].

    Example: log-probabilities of the next token at the wanted slots::

        last = str(config.layers - 1)
        rows = forward(weights, config, bins, root, mesh=mesh, sites=(last,)).states((last,))[last]
        jax.nn.log_softmax(logits(weights, config, rows, mesh=mesh))  # [B W V]
    """
    head = weights.embedding if config.tied else getattr(weights, "head", None)
    if head is None:
        raise ValueError("the output head was not loaded: load_model(..., head=True)")
    normed = normalise(x, weights, "final_norm", config)
    product = choose_arithmetic(mesh, weights.dtype).product
    rows = head[...] if tokens is None else head[...][tokens]
    found = product("ND,VD->NV", normed.reshape(-1, config.width), rows).reshape(*x.shape[:-1], -1)
    return found if config.logit_cap is None else config.logit_cap * jnp.tanh(found / config.logit_cap)
