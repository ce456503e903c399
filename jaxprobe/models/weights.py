"""Checkpoint tensors -> sharded parameters: each process reads only the slices that its devices hold.

A family's table says where each parameter lies and how the file groups its axes. The loader walks the model's
parameters, so a tensor that is missing can't go unnoticed.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from jaxprobe.errors import InputError
from jaxprobe.mesh import spec
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families.family import Parameter, Tensor
from jaxprobe.models.families.known import family_of, parameters
from jaxprobe.models.files.checkpoint import Checkpoint
from jaxprobe.models.transformer import Transformer, abstract_weights

# ---- Checks, before anything is read ------------------------------------------------------------------------------

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blk)\.(\d+)\.")


def check_tensors(checkpoint: Checkpoint, config: ModelConfig, layers: int) -> None:
    """Compares the checkpoint's tensors with what ``layers`` blocks need.

    Raises:
      InputError: every tensor that is missing, of another shape, or present but not understood.
    """
    found, problems = dict(checkpoint.shapes()), []
    needed: dict[str, tuple[int, ...]] = {}
    for parameter, tensor in find_tensors(checkpoint, config).items():
        shape = _file_shape(tensor, config)
        each = range(layers) if parameters(config)[parameter].in_block else range(1)
        needed |= {tensor.name.format(layer): shape for layer in each}
    for name, shape in needed.items():
        if name not in found:
            problems.append(f"Tensor {name} {list(shape)} is missing. The checkpoint is not complete.")
        elif (actual := found.pop(name)) != shape:
            problems.append(f"Tensor {name} has shape {list(actual)}; the configuration asks for {list(shape)}.")
    not_read = re.compile(rf"{family_of(config).NOT_READ}|.*_scale_inv")  # scales go with their matrix
    for name in found:
        layer = _LAYER.search(name)
        beyond = layer is not None and layers <= int(layer[1]) < config.layers
        if not beyond and not not_read.fullmatch(name):
            problems.append(
                f"Tensor {name} is not part of a model of the family {config.family}: ignoring it might give other "
                "hidden states."
            )
    if problems:
        shown = problems[:10]
        if len(problems) > len(shown):
            shown.append(f"... and {len(problems) - len(shown)} more tensors.")
        raise InputError(*shown)


def find_tensors(checkpoint: Checkpoint, config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in this checkpoint: the family's table with the prefix that the file's names have."""
    family = family_of(config)
    if checkpoint.is_gguf:
        return family.gguf_tensors(config)
    table, shapes = family.tensors(config), checkpoint.shapes()
    at = lambda prefix: prefix + table["embedding"].name
    prefix = next((prefix for prefix in family.PREFIXES if at(prefix) in shapes), family.PREFIXES[0])
    found = {name: tensor._replace(name=prefix + tensor.name) for name, tensor in table.items()}
    if "head" in table:
        name = next((name for name in family.HEADS if name in shapes), family.HEADS[0])
        found["head"] = table["head"]._replace(name=name)
    return found


def _lengths(tensor: Tensor, config: ModelConfig) -> tuple[dict[str, int], int]:
    """Sizes of the file's letters, ``*`` among them, and where along its dimension the parameter begins."""
    sizes = config.file_sizes() | {"*": len(tensor.beside)}
    if not tensor.beside or any("*" in group for group in tensor.dims):
        return sizes, 0
    return sizes, sum(math.prod(sizes[letter] for letter in group) for group in tensor.beside[: tensor.at])


def _file_shape(tensor: Tensor, config: ModelConfig) -> tuple[int, ...]:
    sizes, _ = _lengths(tensor, config)
    of = lambda group: math.prod(sizes[letter] for letter in group)
    return tuple(sum(map(of, tensor.beside)) if group == _shared(tensor) else of(group) for group in tensor.dims)


def _shared(tensor: Tensor) -> str | None:
    """The dimension along which parameters lie one after the other."""
    if not tensor.beside or any("*" in group for group in tensor.dims):
        return None
    return tensor.beside[tensor.at]


# ---- Reading ------------------------------------------------------------------------------------------------------

Ranges = tuple[range, ...]  # one device's part of a tensor: a range along each axis


def tensor_count(config: ModelConfig) -> int:
    """Tensors that `load_weights` reads."""
    return sum(config.layers if parameter.in_block else 1 for parameter in parameters(config).values())


def load_weights(
    checkpoint: Checkpoint,
    config: ModelConfig,
    mesh: Mesh,
    dtype: Any,
    advance: Callable[[int], None] = lambda count: None,
) -> Transformer:
    """Reads the parameters of ``config.layers`` blocks, each device's slice to that device.

    One tensor of the file at a time: a stacked parameter grows in place on the devices, layer by layer, so beyond the
    parameters the host holds one part of one tensor (and, where the devices are the host's own, that tensor on them).

    Args:
      config: from `fit_config`, so that every axis divides over the mesh.
      dtype: of the parameters; the devices convert from the file's.
      advance: told the number of tensors that were read since.
    """
    graph, state = abstract_weights(config, mesh, dtype)

    table, known = find_tensors(checkpoint, config), parameters(config)

    def load(name: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
        def tensor(layer: int) -> jax.Array:
            found = _read_tensor(checkpoint, config, mesh, known[name], table[name], layer)
            advance(1)
            return found

        if not known[name].in_block:
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


def _read_tensor(
    checkpoint: Checkpoint, config: ModelConfig, mesh: Mesh, parameter: Parameter, tensor: Tensor, layer: int
) -> jax.Array:
    """One parameter of one layer on the devices, in our order of axes and the file's dtype.

    Every distinct part is read once, whatever the number of devices that hold it.
    """
    axes = parameter.axes.removeprefix("L")
    sizes, sharding = config.sizes(), NamedSharding(mesh, spec(axes))
    shape = tuple(sizes[letter] for letter in axes)
    holders: dict[Ranges, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        ranges = tuple(range(size)[part] for size, part in zip(shape, index, strict=True))
        holders.setdefault(ranges, []).append(device)
    parts = []
    for ranges, devices in holders.items():
        # Putting a transposed view on a device is several times faster than a transpose by NumPy, or by XLA on a CPU.
        copies = config.kv_copies if parameter.per_kv_head else 1
        values = _read_part(checkpoint, config, tensor, layer, axes, ranges, copies)
        first = jax.device_put(values, devices[0])
        parts += [first, *(jax.device_put(first, device) for device in devices[1:])]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _read_part(
    checkpoint: Checkpoint,
    config: ModelConfig,
    tensor: Tensor,
    layer: int,
    axes: str,
    ranges: Ranges,
    copies: int,
) -> np.ndarray:
    """One device's part of a parameter, as a view in our order of axes of a copy in the file's."""
    wanted = dict(zip(axes, ranges, strict=True))
    if copies > 1:
        heads = wanted["K"]
        wanted["K"] = range(heads.start // copies, -(-heads.stop // copies))
    file_sizes, begin = _lengths(tensor, config)
    sizes = config.sizes() | {"*": len(tensor.beside)} | ({"K": file_sizes["K"]} if copies > 1 else {})
    # Only the first letter of a group is ever shared over devices, so a part of it is contiguous in the file.
    index = []
    for group in tensor.dims:
        inner = math.prod(sizes[letter] for letter in group[1:])
        first, start = wanted[group[0]], begin if group == _shared(tensor) else 0
        index.append(slice(start + first.start * inner, start + first.stop * inner))
    letters = "".join(tensor.dims)
    values = checkpoint.read(tensor.name.format(layer), tuple(index))
    if "*" in letters:
        values = values.reshape([sizes["*"] if letter == "*" else len(wanted[letter]) for letter in letters])
        values = np.take(values, tensor.at, axis=letters.index("*"))
        letters = letters.replace("*", "")
    # A copy: devices of the host's own may take an array as it stands, and would keep the file mapped.
    values = np.array(values).reshape([len(wanted[letter]) for letter in letters])
    if tensor.head_order:
        values = np.take(values, tensor.head_order, axis=letters.index("H"))
    if tensor.offset:
        values = values.astype(np.float32) + np.float32(tensor.offset)
    if copies > 1:
        skipped, at = heads.start % copies, letters.index("K")
        values = np.repeat(values, copies, axis=at)
        values = np.take(values, range(skipped, skipped + len(heads)), axis=at)
    return values.transpose([letters.index(letter) for letter in axes])
