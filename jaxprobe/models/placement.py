"""Which mesh a model goes on, from its size and a device's memory."""

import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxprobe.mesh import LEGEND, MESH_AXES, make_mesh, parse_mesh, spec
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families.known import parameters

# The other half is for activations, for states on their way to the host, and for sums over rows.
PARAMETER_SHARE = 0.5


def parameter_bytes(config: ModelConfig, mesh: Mapping[str, int], dtype: str) -> int:
    """Bytes of parameters on each device of a mesh that they divide over."""
    sizes = config.sizes()
    count = 0
    for axes, *_ in parameters(config).values():
        devices = [axis for entry in spec(axes) if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
        count += math.prod(sizes[axis] for axis in axes) // math.prod(mesh.get(axis, 1) for axis in devices)
    return count * jnp.dtype(dtype).itemsize


def device_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes of the smallest device that this process has, where devices tell (CPUs don't)."""
    found = [device.memory_stats() for device in devices if device.process_index == jax.process_index()]
    return min((stats["bytes_limit"] for stats in found if stats and "bytes_limit" in stats), default=None)


def place(
    config: ModelConfig, mesh: str | None, dtype: str, devices: Sequence[jax.Device] | None = None
) -> tuple[Mesh, str]:
    """The mesh that ``mesh`` asks for, or the chosen one of these devices (default: all), and the reason for it."""
    if mesh:
        return make_mesh(parse_mesh(mesh)), "as asked for"
    devices = jax.devices() if devices is None else devices
    sizes, reason = choose_mesh(config, len(devices), device_memory(devices), dtype)
    return make_mesh(sizes, devices), reason


def choose_mesh(
    config: ModelConfig, devices: int, bytes_per_device: int | None, dtype: str
) -> tuple[dict[str, int], str]:
    """Sizes of a mesh, and the reason for them in a sentence.

    Every device takes whole bins where the parameters fill at most half of it. Otherwise the model is cut in as few
    parts as do: over ``model`` as far as heads, MLP width and vocabulary divide, over ``fsdp`` beyond that.

    Args:
      config: the model.
      devices: their number.
      bytes_per_device: memory of each; None where that is not known.
      dtype: of the parameters.
    """
    whole = parameter_bytes(config, {}, dtype)
    if bytes_per_device is None:
        return {"data": devices}, "each device has the whole model and takes a share of the bins"
    meshes = sorted(_meshes(config, devices), key=lambda mesh: (mesh["fsdp"] * mesh["model"], mesh["fsdp"]))
    room = PARAMETER_SHARE * bytes_per_device
    fitting = [mesh for mesh in meshes if parameter_bytes(config, mesh, dtype) <= room]
    most = max(meshes, key=lambda mesh: (mesh["fsdp"] * mesh["model"], mesh["model"]))
    chosen = fitting[0] if fitting else most
    each, memory = parameter_bytes(config, chosen, dtype) / 1e9, bytes_per_device / 1e9
    reason = f"parameters take {whole / 1e9:.2f} GB"
    if chosen["model"] * chosen["fsdp"] == 1:
        reason += f", which leaves at least half of each device's {memory:.0f} GB free"
    else:
        reason += f"; cut in {chosen['model'] * chosen['fsdp']} they take {each:.2f} of a device's {memory:.0f} GB"
    if not fitting:
        reason += ", and no more parts divide over these devices"
    return {axis: size for axis, size in chosen.items() if size > 1} or {"data": 1}, reason


def _meshes(config: ModelConfig, devices: int) -> Iterator[dict[str, int]]:
    """Every mesh of all devices that the model's axes divide over."""
    sizes = config.sizes()
    shared = {axis: [sizes[letter] for letter in "DKFV" if axis in LEGEND[letter][1]] for axis in MESH_AXES}
    for model in _divisors(math.gcd(devices, *shared["model"])):
        for fsdp in _divisors(math.gcd(devices // model, *shared["fsdp"])):
            yield {"data": devices // model // fsdp, "fsdp": fsdp, "model": model}


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
