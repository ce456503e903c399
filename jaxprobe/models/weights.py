"""Checkpoint tensors -> sharded parameters: each process reads only the slices that its devices hold.

One table says, for each parameter, where it lies in a Hugging Face and in a GGUF checkpoint and how the file
groups its axes. The loader walks the model's parameters, so a tensor that is missing can't go unnoticed.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from jaxprobe.errors import InputError
from jaxprobe.mesh import spec
from jaxprobe.models.config import LlamaConfig
from jaxprobe.models.files.checkpoint import Checkpoint
from jaxprobe.models.transformer import BLOCK_AXES, KV_PARAMETERS, MODEL_AXES, Llama, abstract_llama


class Weight(NamedTuple):
    """Where one parameter lies in a checkpoint; ``{}`` stands for the layer."""

    hugging_face: str
    gguf: str
    file_axes: tuple[str, ...]  # the file's dimensions, each a group of our letters, slowest first


WEIGHTS: dict[str, Weight] = {
    "embedding": Weight("model.embed_tokens.weight", "token_embd.weight", ("V", "D")),
    "final_norm": Weight("model.norm.weight", "output_norm.weight", ("D",)),
    "attention_norm": Weight("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", ("D",)),
    "query": Weight("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", ("KGH", "D")),
    "key": Weight("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", ("KH", "D")),
    "value": Weight("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", ("KH", "D")),
    "output": Weight("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", ("D", "KGH")),
    "mlp_norm": Weight("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", ("D",)),
    "gate": Weight("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", ("F", "D")),
    "up": Weight("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", ("F", "D")),
    "down": Weight("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", ("D", "F")),
}
# The output head is not run; old files also carry the rotary tables, which the configuration gives.
_NOT_READ = re.compile(r"lm_head\.weight|output\.weight|rope_freqs\.weight|.*\.rotary_emb\.inv_freq")
_LAYER = re.compile(r"(?:model\.layers|blk)\.(\d+)\.")


# ---- Checks, before anything is read ------------------------------------------------------------------------------


def check_tensors(checkpoint: Checkpoint, config: LlamaConfig, layers: int) -> None:
    """Compares the checkpoint's tensors with what ``layers`` blocks need.

    Raises:
      InputError: every tensor that is missing, of another shape, or present but not understood.
    """
    found, sizes, problems = dict(checkpoint.shapes()), config.sizes(), []
    for parameter, weight in WEIGHTS.items():
        shape = tuple(int(np.prod([sizes[letter] for letter in group])) for group in weight.file_axes)
        for name in {_file_name(checkpoint, parameter, layer) for layer in range(layers)}:
            if name not in found:
                problems.append(f"Tensor {name} {list(shape)} is missing. The checkpoint is not complete.")
            elif (actual := found.pop(name)) != shape:
                problems.append(f"Tensor {name} has shape {list(actual)}; the configuration asks for {list(shape)}.")
    for name in found:
        layer = _LAYER.match(name)
        beyond = layer is not None and layers <= int(layer[1]) < config.layers
        if not beyond and not _NOT_READ.fullmatch(name):
            problems.append(f"Tensor {name} is not part of a Llama: ignoring it might give other hidden states.")
    if problems:
        shown = problems[:10]
        if len(problems) > len(shown):
            shown.append(f"... and {len(problems) - len(shown)} more tensors.")
        raise InputError(*shown)


def _file_name(checkpoint: Checkpoint, parameter: str, layer: int) -> str:
    weight = WEIGHTS[parameter]
    return (weight.gguf if checkpoint.is_gguf else weight.hugging_face).format(layer)


# ---- Reading ------------------------------------------------------------------------------------------------------

Ranges = tuple[range, ...]  # one device's part of a tensor: a range along each axis


def tensor_count(config: LlamaConfig) -> int:
    """Tensors that `load_weights` reads."""
    return len(MODEL_AXES) + config.layers * len(BLOCK_AXES)


def load_weights(
    checkpoint: Checkpoint,
    config: LlamaConfig,
    mesh: Mesh,
    dtype: Any,
    advance: Callable[[int], None] = lambda count: None,
) -> Llama:
    """Reads the parameters of ``config.layers`` blocks, each device's slice to that device.

    One tensor of the file at a time: a stacked parameter grows in place on the devices, layer by layer, so beyond the
    parameters the host holds one part of one tensor (and, where the devices are the host's own, that tensor on them).

    Args:
      config: from `fit_config`, so that every axis divides over the mesh.
      dtype: of the parameters; the devices convert from the file's.
      advance: told the number of tensors that were read since.
    """
    graph, state = abstract_llama(config, mesh, dtype)

    def load(name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        def tensor(layer: int) -> jax.Array:
            found = _read_tensor(checkpoint, config, mesh, name, layer)
            advance(1)
            return found

        if name in MODEL_AXES:
            return tensor(0).astype(shape.dtype)
        stacked = _zeros(shape)
        for layer in range(config.layers):
            # Waiting keeps the host from reading tensors faster than the devices take them.
            stacked = _set_layer(stacked, tensor(layer), np.int32(layer), shape).block_until_ready()
        return stacked

    flat = nnx.to_flat_state(state)
    loaded = [(path, variable.replace(load(path[-1], variable.get_value()))) for path, variable in flat]
    return nnx.merge(graph, nnx.from_flat_state(loaded))


@functools.partial(jax.jit, static_argnums=0)
def _zeros(shape: jax.ShapeDtypeStruct) -> Float[Array, "..."]:
    return jax.lax.with_sharding_constraint(jnp.zeros(shape.shape, shape.dtype), shape.sharding)


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _set_layer(
    stacked: Float[Array, "L ..."], tensor: Float[Array, "..."], layer: Int[Array, ""], shape: jax.ShapeDtypeStruct
) -> Float[Array, "L ..."]:
    # As bits: of bfloat16 XLA on a CPU would widen the whole stack and round it back, for every layer.
    bits = f"uint{8 * shape.dtype.itemsize}"
    whole, part = (jax.lax.bitcast_convert_type(x.astype(shape.dtype), bits) for x in (stacked, tensor))
    result = jax.lax.bitcast_convert_type(jax.lax.dynamic_update_index_in_dim(whole, part, layer, 0), shape.dtype)
    return jax.lax.with_sharding_constraint(result, shape.sharding)


def _read_tensor(checkpoint: Checkpoint, config: LlamaConfig, mesh: Mesh, parameter: str, layer: int) -> jax.Array:
    """One tensor of the file on the devices, in our order of axes and the file's dtype.

    Every distinct part is read once, whatever the number of devices that hold it.
    """
    axes = (BLOCK_AXES | MODEL_AXES)[parameter].removeprefix("L")
    sizes, sharding = config.sizes(), NamedSharding(mesh, spec(axes))
    shape = tuple(sizes[letter] for letter in axes)
    holders: dict[Ranges, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        ranges = tuple(range(size)[part] for size, part in zip(shape, index, strict=True))
        holders.setdefault(ranges, []).append(device)
    parts = []
    for ranges, devices in holders.items():
        # Putting a transposed view on a device is several times faster than a transpose by NumPy, or by XLA on a CPU.
        first = jax.device_put(_read_part(checkpoint, config, parameter, layer, axes, ranges), devices[0])
        parts += [first, *(jax.device_put(first, device) for device in devices[1:])]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _read_part(
    checkpoint: Checkpoint, config: LlamaConfig, parameter: str, layer: int, axes: str, ranges: Ranges
) -> np.ndarray:
    """One device's part of a tensor, as a view in our order of axes of a copy in the file's."""
    groups = WEIGHTS[parameter].file_axes
    letters, sizes = "".join(groups), config.sizes()
    wanted = dict(zip(axes, ranges, strict=True))
    copies = config.kv_copies if parameter in KV_PARAMETERS else 1
    if copies > 1:
        heads = wanted["K"]
        wanted["K"] = range(heads.start // copies, -(-heads.stop // copies))
    # Only the first letter of a group is ever shared over devices, so a part of it is contiguous in the file.
    index = []
    for group in groups:
        inner = int(np.prod([sizes[letter] for letter in group[1:]]))
        first = wanted[group[0]]
        index.append(slice(first.start * inner, first.stop * inner))
    # A copy: devices of the host's own may take an array as it stands, and would keep the file mapped.
    values = np.array(checkpoint.read(_file_name(checkpoint, parameter, layer), tuple(index)))
    values = values.reshape([len(wanted[letter]) for letter in letters])
    if checkpoint.is_gguf and parameter in ("query", "key"):
        values = _undo_interleaving(values, letters.index("H"))
    if copies > 1:  # the file's K comes first
        skipped = heads.start % copies
        values = np.repeat(values, copies, axis=0)[skipped : skipped + len(heads)]
    return values.transpose([letters.index(letter) for letter in axes])


def _undo_interleaving(values: np.ndarray, axis: int) -> np.ndarray:
    """llama.cpp's converter lays rotary pairs (i, i + H/2) side by side; puts them back."""
    split = values.reshape(*values.shape[:axis], values.shape[axis] // 2, 2, *values.shape[axis + 1 :])
    return split.swapaxes(axis, axis + 1).reshape(values.shape)
