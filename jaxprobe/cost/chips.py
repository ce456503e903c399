"""One table of accelerators, and machines made of them: "v5e:8x8", "h100:8"."""

import math
from typing import NamedTuple

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
    "h200": Chip("NVIDIA H200 SXM", "gpu", 989, 67, 141, 4800, 450, 8, "NVIDIA's H200 data sheet"),
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

    @property
    def processes(self) -> int:
        """As the launchers start them: one for each GPU (scripts/launch_slurm), one for each host of a TPU slice."""
        return self.count if self.chip.platform == "gpu" else self.hosts


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
