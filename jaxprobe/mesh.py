"""The axis legend: one letter for each kind of array axis, and the mesh axes that share it.

The same letters serve the einsum strings, the shape annotations and the shardings. A mesh has three axes:
``data`` and ``fsdp`` share the packed bins, ``model`` shares heads, MLP width and vocabulary; ``fsdp`` also
shares the width of the weights.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxprobe.errors import InputError

MESH_AXES = ("data", "fsdp", "model")

# letter -> (meaning, mesh axes)
LEGEND: dict[str, tuple[str, tuple[str, ...]]] = {
    "E": ("entity", ()),
    "B": ("packed bin", ("data", "fsdp")),
    "T": ("query slot", ()),
    "S": ("key slot", ()),
    "W": ("wanted row of a bin", ("model",)),
    "R": ("shared-root slot", ()),
    "L": ("layer", ()),
    "D": ("width", ("fsdp",)),
    "K": ("key/value head", ("model",)),
    "G": ("queries per key/value head", ()),
    "H": ("head width", ()),
    "F": ("MLP width", ("model",)),
    "V": ("vocabulary", ("model",)),
    "P": ("row of a position table", ()),
}


def spec(letters: str, gathered: str = "") -> PartitionSpec:
    """The sharding of an array whose axes are ``letters``.

    A mesh axis is used once, by the first letter that asks: so D is shared in a weight ("DF") and whole in
    an activation ("BTD"), where B has taken ``fsdp`` already.

    Args:
      letters: one for each axis.
      gathered: a mesh axis that no letter gets: ``fsdp`` for a weight that is about to be used.
    """
    taken = {gathered}
    dims: list[tuple[str, ...] | str | None] = []
    for letter in letters:
        axes = tuple(axis for axis in LEGEND[letter][1] if axis not in taken)
        taken.update(axes)
        dims.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*dims)


def parse_mesh(text: str) -> dict[str, int]:
    """Sizes from text such as ``data=2,model=4``; an axis left out has size 1.

    Raises:
      InputError: an unknown axis, or a size that is not a positive whole number.
    """
    sizes: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES or not size.isdecimal() or int(size) < 1:
            raise InputError(
                f"Mesh setting {part!r} is not an axis and a size. Axes are {', '.join(MESH_AXES)}; "
                "write for example --mesh data=2,model=4."
            )
        sizes[axis] = int(size)
    return sizes


def mesh_text(sizes: Mapping[str, int]) -> str:
    """The text that `parse_mesh` reads, without axes of size 1."""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "data=1"


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over ``devices`` (default: all); without sizes, every device takes a share of the bins.

    Raises:
      InputError: the sizes ask for more devices than there are.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": len(devices)} if sizes is None else sizes
    shape = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
    wanted = int(np.prod(shape))
    if wanted > len(devices):
        raise InputError(
            f"Mesh {mesh_text(sizes)} needs {wanted} devices; {len(devices)} are here. Use a smaller mesh."
        )
    grid = np.asarray(devices[:wanted]).reshape(shape)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
