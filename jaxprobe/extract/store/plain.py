"""States in plain files, of whoever made them: .npy, a folder of them, or .safetensors."""

from collections.abc import Iterator, Mapping
from os import PathLike

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, as_path


class PlainStates(Mapping[str, np.ndarray]):
    """State name -> [N, D], read when it is asked for.

    Of a .npy file [N, D] the name is the file's; of one [L, N, D] the names are 0 to L - 1. Of a folder each .npy file
    [N, D] is a state: numbers in their order first, after ``embed``; other names in the alphabet's. Of a .safetensors
    file each tensor [N, D] is one, in the same order.

    Raises:
      InputError: a path that is none of these, arrays of another rank or dtype, or that differ in their rows.
    """

    def __init__(self, path: str | PathLike):
        self.path = as_path(path)
        if self.path.is_dir():
            files = {file.stem: file for file in self.path.glob("*.npy")}
            self._arrays = {name: _open_npy(files[name]) for name in sorted(files, key=_order)}
        elif self.path.suffix == ".npy":
            array = _open_npy(self.path)
            layers = array.ndim == 3
            self._arrays = {str(i): array[i] for i in range(len(array))} if layers else {self.path.stem: array}
        elif self.path.suffix == ".safetensors":
            self._arrays = _open_safetensors(self.path)
        else:
            raise InputError(f"{self.path} is no .npy or .safetensors file and no folder of .npy files. Name one.")
        problems = [
            f"State {name!r} of {self.path} has shape {list(array.shape)} and dtype {array.dtype}; wanted numbers "
            "[row, dimension]."
            for name, array in self._arrays.items()
            if array.ndim != 2 or not array.size > 0 or array.dtype.name not in _DTYPES
        ]
        rows = {array.shape[0] for array in self._arrays.values()}
        if not problems and len(rows) != 1:
            counts = ", ".join(f"{name} {array.shape[0]}" for name, array in list(self._arrays.items())[:4])
            problems.append(f"The states of {self.path} differ in their rows ({counts or 'there are none'}).")
        if problems:
            raise InputError(*problems)

    def __getitem__(self, state: str) -> np.ndarray:
        array = np.asarray(self._arrays[state])
        return array if array.dtype.name in ("float32", "bfloat16") else array.astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


_DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32")


def _order(name: str) -> tuple[int, int, str]:
    """``embed``, numbers, other names."""
    return (0, 0, "") if name == "embed" else (1, int(name), "") if name.isdecimal() else (2, 0, name)


def _open_npy(file: AnyPath) -> np.ndarray:
    if not file.is_file():
        raise InputError(f"There is no {file}. Name the states' file.")
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} can't be read as a NumPy array ({error}). Write it with numpy.save.") from error


class _Tensor:
    """A tensor of a safetensors file that is read when an array is made of it."""

    def __init__(self, path: AnyPath, name: str):
        self._path, self._name = path, name
        with safe_open(path, framework="numpy") as file:
            part = file.get_slice(name)
            self.shape = tuple(part.get_shape())
            kinds = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
            self.dtype = np.dtype(kinds.get(part.get_dtype(), "object"))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        with safe_open(self._path, framework="numpy") as file:
            return np.asarray(file.get_tensor(self._name), dtype)


def _open_safetensors(path: AnyPath) -> dict[str, _Tensor]:
    if not path.is_file():
        raise InputError(f"There is no {path}. Name the states' file.")
    try:
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys(), key=_order)
        return {name: _Tensor(path, name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} can't be read as safetensors ({error}). Write it anew.") from error
