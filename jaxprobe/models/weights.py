"""Checkpoint files -> sharded parameters: each process reads only the slices that its devices hold.

One table says, for each parameter, where it lies in a Hugging Face and in a GGUF checkpoint and how the file
groups its axes. The loader walks the model's parameters, so a tensor that is missing can't go unnoticed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import gguf
import jax
import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors then reads
import numpy as np
import safetensors
from flax import nnx

from jaxprobe.errors import InputError
from jaxprobe.models.config import LlamaConfig, from_gguf, from_hugging_face
from jaxprobe.models.llama import BLOCK_AXES, MODEL_AXES, Llama, abstract_llama


class Weight(NamedTuple):
    """Where one parameter lies in a checkpoint; ``{}`` stands for the layer."""

    hugging_face: str
    gguf: str
    file_axes: tuple[str, ...]  # the file's dimensions, each a group of our letters, slowest first


WEIGHTS: dict[str, Weight] = {
    "embedding": Weight("model.embed_tokens.weight", "token_embd.weight", ("V", "D")),
    "final_norm": Weight("model.norm.weight", "output_norm.weight", ("D",)),
    "attention_norm": Weight("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", ("D",)),
    "query": Weight("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", ("KGH", "D")),
    "key": Weight("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", ("KH", "D")),
    "value": Weight("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", ("KH", "D")),
    "output": Weight("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", ("D", "KGH")),
    "mlp_norm": Weight("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", ("D",)),
    "gate": Weight("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", ("F", "D")),
    "up": Weight("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", ("F", "D")),
    "down": Weight("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", ("D", "F")),
}
# The output head is not run; old files also carry the rotary tables, which the configuration gives.
_NOT_READ = re.compile(r"lm_head\.weight|output\.weight|rope_freqs\.weight|.*\.rotary_emb\.inv_freq")
_LAYER = re.compile(r"(?:model\.layers|blk)\.(\d+)\.")


class Checkpoint(Protocol):
    """Tensors by name, read in slices."""

    is_gguf: bool
    files: tuple[Path, ...]

    def config(self) -> LlamaConfig: ...
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray: ...


class SafetensorsCheckpoint:
    """A Hugging Face folder: config.json with one safetensors file, or an index of several."""

    is_gguf = False

    def __init__(self, folder: Path):
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        names = sorted(set(_read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{folder} lacks {', '.join(missing)}. Weights are read from safetensors only; download them again."
            )
        self.files = tuple(folder / name for name in names)
        self._tensors: dict[str, Any] = {}
        for name in names:
            try:
                file = safetensors.safe_open(folder / name, framework="numpy")
            except (safetensors.SafetensorError, OSError) as error:
                raise InputError(f"{folder / name} can't be read ({error}). Download it again.") from error
            self._tensors |= {tensor: file for tensor in file.keys()}  # noqa: SIM118  safe_open is no mapping

    def config(self) -> LlamaConfig:
        return from_hugging_face(_read_json(self.folder / "config.json"))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._tensors.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        return self._tensors[name].get_slice(name)[index]


class GGUFCheckpoint:
    """A GGUF file; quantised blocks are expanded by the ``gguf`` package."""

    is_gguf = True

    def __init__(self, path: Path):
        try:
            reader = gguf.GGUFReader(path)
        except (ValueError, OSError, IndexError) as error:
            raise InputError(f"{path} can't be read as GGUF ({error}). It may be truncated; fetch it again.") from error
        self.files = (path,)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._metadata = {
            key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.")
        }

    def config(self) -> LlamaConfig:
        embedding, divisors = self._tensors.get("token_embd.weight"), self._tensors.get("rope_freqs.weight")
        if embedding is None:
            raise InputError("The GGUF file has no tensor token_embd.weight. It is not complete.")
        return from_gguf(self._metadata, int(embedding.shape[-1]), None if divisors is None else divisors.data)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in self._tensors.items()}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        tensor = self._tensors[name]
        rows = gguf.dequantize(tensor.data[index[0]], tensor.tensor_type)
        return rows[(slice(None), *index[1:])]


def open_checkpoint(path: Path) -> Checkpoint:
    return GGUFCheckpoint(path) if path.suffix == ".gguf" else SafetensorsCheckpoint(path)


def weights_digest(checkpoint: Checkpoint) -> str:
    """A SHA-256 that tells checkpoints apart: over whole files up to 1 GB, over their sizes and samples beyond.

    Reading 140 GB only to name it would cost minutes; 256 blocks a file, the header among them, tell any two apart
    that were trained or converted differently.
    """
    digest = hashlib.sha256()
    for path in checkpoint.files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            whole = size <= _DIGEST_WHOLE
            for offset in range(0, size, _DIGEST_BLOCK if whole else size // _DIGEST_SAMPLES):
                file.seek(offset)
                digest.update(file.read(_DIGEST_BLOCK))
    return digest.hexdigest()


_DIGEST_WHOLE, _DIGEST_BLOCK, _DIGEST_SAMPLES = 2**30, 2**20, 256


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as JSON ({error}). Download it again.") from error


# ---- Checks, before anything is read ------------------------------------------------------------------------------


def check_tensors(checkpoint: Checkpoint, config: LlamaConfig, layers: int) -> None:
    """Compares the checkpoint's tensors with what ``layers`` blocks need.

    Raises:
      InputError: every tensor that is missing, of another shape, or present but not understood.
    """
    found, sizes, problems = dict(checkpoint.shapes()), config.sizes(), []
    for parameter, weight in WEIGHTS.items():
        shape = tuple(int(np.prod([sizes[letter] for letter in group])) for group in weight.file_axes)
        for name in {_file_name(checkpoint, parameter, layer) for layer in range(layers)}:
            if name not in found:
                problems.append(f"Tensor {name} {list(shape)} is missing. The checkpoint is not complete.")
            elif (actual := found.pop(name)) != shape:
                problems.append(f"Tensor {name} has shape {list(actual)}; the configuration asks for {list(shape)}.")
    for name in found:
        layer = _LAYER.match(name)
        beyond = layer is not None and layers <= int(layer[1]) < config.layers
        if not beyond and not _NOT_READ.fullmatch(name):
            problems.append(f"Tensor {name} is not part of a Llama: ignoring it might give other hidden states.")
    if problems:
        shown = problems[:10]
        if len(problems) > len(shown):
            shown.append(f"... and {len(problems) - len(shown)} more tensors.")
        raise InputError(*shown)


def _file_name(checkpoint: Checkpoint, parameter: str, layer: int) -> str:
    weight = WEIGHTS[parameter]
    return (weight.gguf if checkpoint.is_gguf else weight.hugging_face).format(layer)


# ---- Reading ------------------------------------------------------------------------------------------------------


def load_weights(checkpoint: Checkpoint, config: LlamaConfig, mesh: jax.sharding.Mesh, dtype: Any) -> Llama:
    """Reads the parameters of ``config.layers`` blocks, each device's slice to that device.

    Raises:
      InputError: a dimension that does not divide over its mesh axis; names it and a size that does.
    """
    graph, state = abstract_llama(config, mesh, dtype)
    _check_divisible(config, mesh)

    def load(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1]

        def read(index: tuple[slice, ...]) -> np.ndarray:
            return _read_slice(checkpoint, config, name, index).astype(shape.dtype)

        return jax.make_array_from_callback(shape.shape, shape.sharding, read)

    flat = nnx.to_flat_state(state)
    loaded = [(path, variable.replace(load(path, variable.get_value()))) for path, variable in flat]
    return nnx.merge(graph, nnx.from_flat_state(loaded))


def _read_slice(checkpoint: Checkpoint, config: LlamaConfig, parameter: str, index: tuple[slice, ...]) -> np.ndarray:
    """One device's part of a parameter, in our order of axes."""
    stacked = parameter in BLOCK_AXES
    axes = BLOCK_AXES[parameter][1:] if stacked else MODEL_AXES[parameter]
    sizes = config.sizes()
    within = dict(zip(axes, index[1:] if stacked else index, strict=True))
    layers = range(config.layers)[index[0]] if stacked else [0]
    one = lambda layer: _read_tensor(checkpoint, sizes, parameter, layer, axes, within)
    return np.stack([one(layer) for layer in layers]) if stacked else one(0)


def _read_tensor(
    checkpoint: Checkpoint, sizes: Mapping[str, int], parameter: str, layer: int, axes: str, within: Mapping[str, slice]
) -> np.ndarray:
    groups = WEIGHTS[parameter].file_axes
    ranges = {letter: range(sizes[letter])[within[letter]] for letter in axes}
    # Only the first letter of a group is ever shared over devices, so a slice of it is contiguous in the file.
    index = []
    for group in groups:
        inner = int(np.prod([sizes[letter] for letter in group[1:]]))
        first = ranges[group[0]]
        index.append(slice(first.start * inner, first.stop * inner))
    values = checkpoint.read(_file_name(checkpoint, parameter, layer), tuple(index))
    letters = "".join(groups)
    values = values.reshape([len(ranges[letter]) for letter in letters])
    if checkpoint.is_gguf and parameter in ("query", "key"):
        values = _undo_interleaving(values, letters.index("H"))
    return values.transpose([letters.index(letter) for letter in axes])


def _undo_interleaving(values: np.ndarray, axis: int) -> np.ndarray:
    """llama.cpp's converter lays rotary pairs (i, i + H/2) side by side; puts them back."""
    split = values.reshape(*values.shape[:axis], values.shape[axis] // 2, 2, *values.shape[axis + 1 :])
    return split.swapaxes(axis, axis + 1).reshape(values.shape)


def _check_divisible(config: LlamaConfig, mesh: jax.sharding.Mesh) -> None:
    names = {"K": "key/value heads", "F": "MLP width", "V": "vocabulary", "D": "width"}
    problems = []
    for letter, axis in (("K", "model"), ("F", "model"), ("V", "model"), ("D", "fsdp")):
        size, devices = config.sizes()[letter], mesh.shape[axis]
        if size % devices:
            fits = max(n for n in range(1, devices + 1) if size % n == 0)
            problems.append(
                f"{letter}={size} ({names[letter]}) does not divide over mesh axis '{axis}' of size {devices}. "
                f"Use --mesh with {axis}={fits}."
            )
    if problems:
        raise InputError(*problems)
