"""Stored hidden states as plain files, for people without JAX: one .npy for each state, or one .safetensors."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np

from jaxprobe.errors import InputError
from jaxprobe.extract.store.reader import Activations, open_activations
from jaxprobe.extract.store.writer import check_space
from jaxprobe.host.paths import AnyPath, as_path, replacing

# safetensors' names, https://huggingface.co/docs/safetensors (format)
_SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


def export_activations(path: str | PathLike, out: str | PathLike, states: Sequence[str] | None = None) -> list[AnyPath]:
    """Writes the store at ``path`` as plain files; rows are in the order of the table.

    Memory holds one state at a time. A file is whole or absent.

    Args:
      out: a name that ends in .safetensors: one file, one [N, D] tensor for each state, in the stored dtype. Any other:
        a folder with STATE.npy [N, D] for each state; NumPy has no bfloat16, so these are float32.
      states: which ones; default: all.

    Returns:
      the files written.

    Raises:
      InputError: as ``open_activations``; an unknown state; a name that is taken by something else; too little space.
    """
    view, out = open_activations(path), as_path(out)
    states = list(view.states if states is None else states)
    unknown = [state for state in states if state not in view]
    if unknown:
        raise InputError(f"{path} has no state {', '.join(unknown)}; it holds {', '.join(view.states)}.")
    if out.suffix == ".safetensors":
        return [_write_safetensors(view, states, out)]
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file. Name a folder for .npy files, or a file that ends in .safetensors.")
    check_space(out, 4 * view.shape[0] * sum(map(view.width_of, states)))
    files = []
    for state in states:
        with replacing(out / f"{state}.npy") as temporary:
            np.save(temporary, view[state].astype(np.float32, copy=False))
        files.append(out / f"{state}.npy")
    return files


def _write_safetensors(view: Activations, states: Sequence[str], out: AnyPath) -> AnyPath:
    """The format's own layout, so that one state at a time is in memory: its library wants all of them at once."""
    ends = np.cumsum([view.shape[0] * view.width_of(state) * view.dtype.itemsize for state in states]).tolist()
    check_space(out.parent, ends[-1])
    header: dict[str, Mapping] = {"__metadata__": {"manifest": json.dumps(view.manifest.key(), ensure_ascii=False)}}
    for state, begin, end in zip(states, [0, *ends], ends, strict=False):
        header[state] = {
            "dtype": _SAFETENSORS_DTYPES[view.dtype.name],
            "shape": (view.shape[0], view.width_of(state)),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    with replacing(out) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for state in states:
            file.write(view[state].reshape(-1).view(np.uint8))
    return out
