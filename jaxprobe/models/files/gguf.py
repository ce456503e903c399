"""A GGUF file: llama.cpp's format, its quantised blocks expanded by the ``gguf`` package."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from jaxprobe.errors import InputError
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families.known import read_gguf
from jaxprobe.models.files.checkpoint import Extent, StoredTensor


class _Reader(gguf.GGUFReader):
    """Cuts a vocabulary's many pieces from a plain array: cutting a memory map takes four times as long."""

    @property  # type: ignore[override]
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

    def config(self) -> ModelConfig:
        rope = {name: tensor.data for name, tensor in self._tensors.items() if name.startswith("rope_")}
        return read_gguf(self.metadata, self.shapes(), rope)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in self._tensors.items()}

    def extents(self) -> Mapping[str, Extent]:
        return {
            name: Extent(self.files[0], tensor.data_offset, tensor.n_bytes, tensor.tensor_type.name)
            for name, tensor in self._tensors.items()
        }

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
