"""A Hugging Face folder: config.json and safetensors. Nothing in it is trusted."""

import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
import numpy as np
import safetensors

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, file_size, is_local, read_ranges
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families.fields import Fields
from jaxprobe.models.families.known import FP8_BLOCK, read_config
from jaxprobe.models.files.checkpoint import Extent, StoredTensor, read_json

# What safetensors calls the dtypes that weights are read from.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}
# A matrix in 8 bits has a scale for each block of so many rows and columns, in a tensor beside it of this ending.
_BLOCK, _SCALES = FP8_BLOCK, "_scale_inv"
_LARGEST_HEADER = 100_000_000  # bytes; the format's own bound
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


class SafetensorsCheckpoint:
    """A folder's one safetensors file, or the several that its index names."""

    is_gguf = False

    def __init__(self, folder: AnyPath):
        self.folder = folder
        index = folder / _INDEX
        names = _indexed_files(index) if index.is_file() else [_SINGLE]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{folder} lacks {', '.join(missing)}. Weights are read from safetensors only; download them again."
            )
        self.files = tuple(folder / name for name in names)
        self._tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            self._tensors |= _read_header(file)
        _check_scales(folder, self._tensors)

    def config(self) -> ModelConfig:
        return folder_config(self.folder)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def extents(self) -> Mapping[str, Extent]:
        return {
            name: Extent(tensor.path, tensor.offset, tensor.size, tensor.dtype)
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        tensor = self._tensors[name]
        if tensor.dtype != _DTYPES["F8_E4M3"]:
            return tensor.read(index)
        scales = self._tensors[name + _SCALES].read((slice(None), slice(None))).astype(np.float32)
        blocks = [np.arange(*part.indices(size)) // _BLOCK for part, size in zip(index, tensor.shape, strict=True)]
        return tensor.read(index).astype(np.float32) * scales[np.ix_(*blocks)]


def folder_config(folder: AnyPath) -> ModelConfig:
    """The configuration of a Hugging Face folder. Raises InputError where its config.json is none that can be run."""
    return read_config(read_json(folder / "config.json"))


def _indexed_files(index: AnyPath) -> list[str]:
    """The files that an index names, each in the index's own folder."""
    content = read_json(index)
    placed = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise InputError(f"{index} has no 'weight_map' that names files. Download it again.")
    names = list(placed.values())
    # A name with a folder in it could lead anywhere on this machine.
    strange = [
        name for name in names if not isinstance(name, str) or not name or set(name) & set("/\\\0") or name[0] == "."
    ]
    if strange:
        raise InputError(
            f"{index} names {Fields.shown(strange[0])} as a file of weights; only files beside it are read. "
            "Download it again from a source that you trust."
        )
    return sorted(set(names))


def _check_scales(folder: AnyPath, tensors: Mapping[str, StoredTensor]) -> None:
    """Raises InputError where a matrix in 8 bits lacks its scales, or scales their matrix."""
    eight = {name for name, tensor in tensors.items() if tensor.dtype == _DTYPES["F8_E4M3"]}
    beside = {name.removesuffix(_SCALES) for name in tensors if name.endswith(_SCALES)}
    for name in sorted(eight | beside):
        scales = tensors.get(name + _SCALES)
        wanted = tuple(-(-size // _BLOCK) for size in tensors[name].shape) if name in eight else None
        if scales is None or scales.dtype == _DTYPES["F8_E4M3"] or len(scales.shape) != 2 or scales.shape != wanted:
            shown = list(scales.shape) if scales else "missing"
            raise InputError(
                f"{folder} has {Fields.shown(name)} with scales {shown}; of F8_E4M3 one for each block of {_BLOCK} x "
                f"{_BLOCK} is needed, and of nothing else. Use a checkpoint that is not quantised, or a GGUF file."
            )


def _read_header(path: AnyPath) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file: 8 bytes of length, that much JSON, then the numbers."""
    try:
        if is_local(path):
            with safetensors.safe_open(path, framework="numpy"):  # checks the header against the file's size
                pass
        length, header = _parse_header(path)
        found = {
            name: (tensor["dtype"], 8 + length + tensor["data_offsets"][0], tuple(tensor["shape"]))
            for name, tensor in header.items()
        }
    except (safetensors.SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} can't be read ({error}). Download it again.") from error
    except RecursionError as error:
        raise InputError(f"{path} can't be read: its header is nested too deeply. Download it again.") from error
    unknown = [f"{name} as {dtype}" for name, (dtype, *_) in found.items() if dtype not in _DTYPES]
    if unknown:
        raise InputError(
            f"{path} stores {', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}; weights are read as "
            f"{', '.join(_DTYPES)}. Use a checkpoint that is not quantised, or a GGUF file."
        )
    return {name: StoredTensor(path, offset, shape, _DTYPES[dtype]) for name, (dtype, offset, shape) in found.items()}


def _parse_header(path: AnyPath) -> tuple[int, dict[str, Any]]:
    """(length, tensors) of a header. Raises ValueError where the file is not as long as the header says."""
    size = file_size(path)
    (start,) = read_ranges(path, [(0, min(8, size))])
    length = int.from_bytes(start, "little")
    if size < 8 or not 0 < length <= min(size - 8, _LARGEST_HEADER):
        raise ValueError(f"{size} bytes that do not begin with a header")
    (text,) = read_ranges(path, [(8, 8 + length)])
    header = json.loads(text)
    header.pop("__metadata__", None)
    end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if end != size:
        raise ValueError(f"{size} bytes, and its header speaks of {end}")
    return length, header
