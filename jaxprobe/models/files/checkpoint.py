"""Checkpoint files: tensors by name, read in slices, for safetensors folders and GGUF files.

Each read maps its tensor anew and lets go of it afterwards: a mapping that stays open would keep every page that was
ever read resident, and by the last tensor the process would hold the checkpoint a second time. From a bucket the rows
that are wanted of a tensor are fetched.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gguf
import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
import numpy as np
import safetensors

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, file_size, is_local, read_ranges
from jaxprobe.models.config import LlamaConfig, from_gguf, from_hugging_face

# What safetensors calls the dtypes that weights are read from.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_LARGEST_HEADER = 100_000_000  # bytes; the format's own bound


class Checkpoint(Protocol):
    """Tensors by name, read in slices."""

    is_gguf: bool
    files: tuple[AnyPath, ...]

    def config(self) -> LlamaConfig: ...
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray: ...


class StoredTensor(NamedTuple):
    """Where a tensor's numbers lie, one after another in C order."""

    path: AnyPath
    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: str

    def read(self, index: tuple[slice, ...]) -> np.ndarray:
        """A view of the file, whose pages are let go with the array; or of the rows that were fetched."""
        if is_local(self.path):
            return np.asarray(np.memmap(self.path, self.dtype, "r", self.offset, self.shape)[index])
        first, stop, _ = index[0].indices(self.shape[0])
        row = int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize
        data = _fetch(self.path, self.offset + first * row, self.offset + stop * row)
        return np.frombuffer(data, self.dtype).reshape(stop - first, *self.shape[1:])[slice(None), *index[1:]]


@functools.lru_cache(maxsize=1)
def _fetch(path: AnyPath, start: int, stop: int) -> bytes:
    """Bytes of an object. The last ones are kept: devices that share a tensor by columns ask for the same rows."""
    (data,) = read_ranges(path, [(start, stop)])
    return data


class SafetensorsCheckpoint:
    """A Hugging Face folder: config.json with one safetensors file, or an index of several."""

    is_gguf = False

    def __init__(self, folder: AnyPath):
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        names = sorted(set(_read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{folder} lacks {', '.join(missing)}. Weights are read from safetensors only; download them again."
            )
        self.files = tuple(folder / name for name in names)
        self._tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            self._tensors |= _read_header(file)

    def config(self) -> LlamaConfig:
        return folder_config(self.folder)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self._tensors[name].read(index)


def folder_config(folder: AnyPath) -> LlamaConfig:
    """The configuration of a Hugging Face folder. Raises InputError where its config.json is none that can be run."""
    return from_hugging_face(_read_json(folder / "config.json"))


def _read_header(path: AnyPath) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file: 8 bytes of length, that much JSON, then the numbers."""
    try:
        if is_local(path):
            with safetensors.safe_open(path, framework="numpy"):  # checks the header against the file's size
                pass
        length, header = _parse_header(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}). Download it again.") from error
    unknown = [f"{name} as {tensor['dtype']}" for name, tensor in header.items() if tensor["dtype"] not in _DTYPES]
    if unknown:
        raise InputError(
            f"{path} stores {', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}; weights are read as "
            f"{', '.join(_DTYPES)}. Use a checkpoint that is not quantised, or a GGUF file."
        )
    return {
        name: StoredTensor(
            path, 8 + length + tensor["data_offsets"][0], tuple(tensor["shape"]), _DTYPES[tensor["dtype"]]
        )
        for name, tensor in header.items()
    }


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


class _Reader(gguf.GGUFReader):
    """Cuts a vocabulary's many pieces from a plain array: cutting a memory map takes four times as long."""

    @property
    def data(self) -> np.ndarray:
        return self._plain

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._plain = np.asarray(mapped)


class GGUFCheckpoint:
    """A GGUF file; quantised blocks are expanded by the ``gguf`` package.

    ``metadata`` has its fields, the tokenizer's among them: to parse the file a second time would take as long again.
    """

    is_gguf = True

    def __init__(self, path: Path):
        try:
            reader = _Reader(path)
            self.metadata = {key: field.contents() for key, field in reader.fields.items()}
        except (ValueError, OSError, LookupError) as error:
            raise InputError(f"{path} can't be read as GGUF ({error}). It may be truncated; fetch it again.") from error
        self.files = (path,)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def config(self) -> LlamaConfig:
        embedding, divisors = self._tensors.get("token_embd.weight"), self._tensors.get("rope_freqs.weight")
        if embedding is None:
            raise InputError("The GGUF file has no tensor token_embd.weight. It is not complete.")
        return from_gguf(self.metadata, int(embedding.shape[-1]), None if divisors is None else divisors.data)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in self._tensors.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        tensor = self._tensors[name]
        stored = StoredTensor(self.files[0], tensor.data_offset, tensor.data.shape, tensor.data.dtype.name)
        *rows, (first, stop, _) = *index[:-1], index[-1].indices(self.shapes()[name][-1])
        # A row is a sequence of blocks: those that hold the wanted columns are enough.
        values, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        items = size // tensor.data.itemsize
        blocks = slice(first // values * items, -(-stop // values) * items)
        expanded = gguf.dequantize(stored.read((*rows, blocks)), tensor.tensor_type)
        skipped = first % values
        return expanded[..., skipped : skipped + stop - first]


def open_checkpoint(path: AnyPath) -> Checkpoint:
    return GGUFCheckpoint(path) if path.suffix == ".gguf" else SafetensorsCheckpoint(path)


_DIGEST_WHOLE, _DIGEST_BLOCK, _DIGEST_SAMPLES = 2**30, 2**20, 256


@functools.lru_cache(maxsize=1)  # a run asks twice, and several runs of one model for each
def weights_digest(checkpoint: Checkpoint) -> str:
    """A SHA-256 that tells checkpoints apart: over whole files up to 1 GB, over their sizes and samples beyond.

    Reading 140 GB only to name it would cost minutes; 256 blocks a file, the header among them, tell any two apart
    that were trained or converted differently. The files' names, and so their order, don't count: one may be renamed.
    """
    digests = []
    for path in checkpoint.files:
        size = file_size(path)
        digest = hashlib.sha256(f"{size}\n".encode())
        whole = size <= _DIGEST_WHOLE
        starts = range(0, size, _DIGEST_BLOCK if whole else size // _DIGEST_SAMPLES)
        for block in read_ranges(path, ((start, min(start + _DIGEST_BLOCK, size)) for start in starts)):
            digest.update(block)
        digests.append(digest.hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _read_json(path: AnyPath) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as JSON ({error}). Download it again.") from error
