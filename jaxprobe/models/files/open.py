"""Opens a checkpoint of either kind."""

from jaxprobe.host.paths import AnyPath
from jaxprobe.models.files.checkpoint import Checkpoint
from jaxprobe.models.files.gguf import GGUFCheckpoint
from jaxprobe.models.files.safetensors import SafetensorsCheckpoint


def open_checkpoint(path: AnyPath) -> Checkpoint:
    """The GGUF file, or the folder with safetensors, at ``path``. Raises InputError where it can't be read."""
    return GGUFCheckpoint(path) if path.suffix == ".gguf" else SafetensorsCheckpoint(path)
