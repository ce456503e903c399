"""One table of accelerators, and machines made of them: "v5e:8x8", "h100:8"."""

import importlib.util
import math
import os
from typing import NamedTuple

import jax

from jaxprobe.errors import InputError

_TPU_PAGE = "docs.cloud.google.com/tpu/docs/"


class Chip(NamedTuple):
    """What the maker publishes of one chip, in units of 10^12 operations a second, and of 10^9 bytes."""

    name: str
    platform: str  # as JAX calls it
    bfloat16: float  # dense matrix products
    float32: float  # the same at the full precision of float32
    memory: float
    memory_bandwidth: float  # a second
    link_bandwidth: float  # a second, one way: what one collective can use, see LINKS
    host_chips: int  # on one host
    source: str

    @property
    def usable_memory(self) -> float:
        """What programs can have of the memory."""
        return GPU_POOL * self.memory if self.platform == "gpu" else self.memory


# JAX takes this much of a GPU's memory when it starts, unless XLA_CLIENT_MEM_FRACTION names another part.
GPU_POOL = 0.75
MOST_OF_A_GPU = 0.95  # what can be asked for: the driver and the libraries have the rest

# A collective runs along one axis of a TPU's torus, over two of its 4 (v5p: 6) links.
LINKS = "a collective uses one axis of a TPU's torus, or a GPU's NVLink one way"
# TPUs have no float32 matrix units: six bfloat16 products make one.
CHIPS = {
    "v5e": Chip("TPU v5e", "tpu", 197, 197 / 6, 16, 819, 100, 8, _TPU_PAGE + "v5e"),
    "v5p": Chip("TPU v5p", "tpu", 459, 459 / 6, 95, 2765, 200, 4, _TPU_PAGE + "v5p"),
    "v6e": Chip("TPU v6e", "tpu", 918, 918 / 6, 32, 1638, 200, 8, _TPU_PAGE + "v6e"),
    "a100": Chip("NVIDIA A100 80 GB", "gpu", 312, 19.5, 80, 2039, 300, 8, "NVIDIA's A100 data sheet"),
    "h100": Chip("NVIDIA H100 SXM", "gpu", 989, 67, 80, 3350, 450, 8, "NVIDIA's H100 data sheet"),
}


class Machine(NamedTuple):
    """Chips of one kind."""

    topology: str  # as it was asked for
    chip: Chip
    count: int

    @property
    def hosts(self) -> int:
        return -(-self.count // self.chip.host_chips)


def parse_topology(text: str) -> Machine:
    """The machine behind ``v5e:8x8`` (a TPU slice and its shape) or ``h100:8`` (GPUs and their number).

    Raises:
      InputError: a chip that is not in the table, or no shape.
    """
    kind, _, shape = text.partition(":")
    sides = shape.split("x")
    if kind not in CHIPS or not all(side.isdecimal() and int(side) for side in sides):
        raise InputError(
            f"--topology {text} is not a chip and a shape. Chips are {', '.join(CHIPS)}; "
            "write for example v5e:8x8, v5p:2x2x4, v6e:4x4 or h100:8."
        )
    return Machine(text, CHIPS[kind], math.prod(map(int, sides)))


def tpu_devices(machine: Machine) -> list[jax.Device]:
    """Devices to compile for, none of which has to be there.

    Raises:
      InputError: libtpu is not installed, or knows no such slice.
    """
    # Without these libtpu asks the network which TPU it runs on, keeps logs, and lets one process at a time load it.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=machine.topology).devices)
    except Exception as error:  # JAX has no type of its own for this
        remedy = f"Slices of this chip are listed on {machine.chip.source}."
        if importlib.util.find_spec("libtpu") is None:
            remedy = 'Install libtpu with: pip install "jaxprobe[tpu]".'
        fact = str(error).splitlines()[0]
        raise InputError(f"Programs can't be compiled for {machine.topology} here ({fact}). {remedy}") from error
    if len(devices) != machine.count:
        raise InputError(f"{machine.topology} has {len(devices)} devices, not {machine.count}. Name another slice.")
    return devices
