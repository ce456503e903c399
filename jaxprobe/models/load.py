"""A language model ready to run: its configuration, sharded weights and tokenizer."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from jaxprobe.errors import InputError
from jaxprobe.host.progress import Progress, default_reporter
from jaxprobe.html import html_table
from jaxprobe.mesh import make_mesh
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.divide import fit_config
from jaxprobe.models.files.checkpoint import Checkpoint
from jaxprobe.models.files.open import open_checkpoint
from jaxprobe.models.files.source import ModelSource, find_model
from jaxprobe.models.tokenizer import load_tokenizer, start_with
from jaxprobe.models.transformer import Transformer
from jaxprobe.models.weights import check_tensors, load_weights, tensor_count

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class ModelFiles(NamedTuple):
    """A model that is found, understood and checked; its weights are not read yet."""

    source: ModelSource
    checkpoint: Checkpoint
    config: ModelConfig  # of the blocks that are wanted
    tokenizer: PreTrainedTokenizerFast
    complete: bool  # whether every block is wanted, so that the final norm has its meaning


class LanguageModel(NamedTuple):
    """What an extraction needs of a model."""

    files: ModelFiles
    weights: Transformer
    mesh: Mesh
    dtype: str

    @property
    def config(self) -> ModelConfig:
        return self.files.config

    def __repr__(self) -> str:
        c = self.config
        return (
            f"LanguageModel({self.files.source.name}: {c.layers} layers, width {c.width}, "
            f"{c.parameter_count() / 1e6:,.0f} M parameters, {self.dtype}, mesh {dict(self.mesh.shape)})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the sizes."""
        c = self.config
        rows = [
            ("states", f"embed, 0 to {c.layers - 1}" + (", final_norm" if self.files.complete else "")),
            ("width", f"{c.width:,}"),
            ("heads", f"{c.kv_heads * c.queries_per_kv} of width {c.head_width}, {c.kv_heads} for keys and values"),
            ("vocabulary", f"{c.vocabulary:,}"),
            ("context", f"{c.context:,} tokens"),
            ("parameters", f"{c.parameter_count() / 1e6:,.0f} M, {self.dtype}"),
            ("devices", ", ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())),
        ]
        return html_table(["", ""], rows, self.files.source.name)


def open_model(
    name: str,
    *,
    revision: str | None = None,
    tokenizer: str | None = None,
    last_layer: int | None = None,
    head: bool = False,
    prepend: str | None = None,
) -> ModelFiles:
    """Finds a model's files and checks everything about them that can be checked without reading the weights.

    Args:
      name: ``demo``, a Hugging Face folder (a path or ``gs://...``), a ``.gguf`` file, or a hub name.
      revision: of a hub model.
      tokenizer: a folder or hub name, where the model's own is not to be used.
      last_layer: the last block wanted; later ones are neither read nor run.
      head: whether the output head is wanted too, for `transformer.logits`; it follows the last block.
      prepend: the token that every text starts with; default: the tokenizer's BOS, or none where it has none.

    Raises:
      InputError: anything about the files that can't be used; every problem found is named.
    """
    source = find_model(name, revision)
    checkpoint = open_checkpoint(source.path)
    config = checkpoint.config()
    layers = config.layers if last_layer is None else last_layer + 1
    if not 1 <= layers <= config.layers:
        raise InputError(f"Layer {last_layer} does not exist: {source.name} has layers 0 to {config.layers - 1}.")
    if head and layers < config.layers:
        raise InputError(f"The output head follows layer {config.layers - 1}, which is left out. Read all layers.")
    config = dataclasses.replace(config, head=head)
    check_tensors(checkpoint, config, layers)
    return ModelFiles(
        source=source,
        checkpoint=checkpoint,
        config=dataclasses.replace(config, layers=layers),
        tokenizer=start_with(load_tokenizer(source, tokenizer, checkpoint), prepend),
        complete=layers == config.layers,
    )


def choose_dtype(dtype: str | None) -> str:
    """The weights' dtype: float32 on a CPU and bfloat16 elsewhere, where nothing else is asked for."""
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}; float16 overflows in real models.")
    return dtype


def fit_mesh(files: ModelFiles, mesh: Mesh, replicate_kv: bool = False) -> ModelFiles:
    """The model as it runs on the mesh. Raises InputError where an axis does not divide over it (see `fit_config`)."""
    return files._replace(config=fit_config(files.config, mesh.shape, replicate_kv))


def read_weights(files: ModelFiles, mesh: Mesh, dtype: str, progress: Progress | None = None) -> LanguageModel:
    """Reads the weights of files from `fit_mesh` onto the mesh."""
    with (progress or default_reporter()).task("load", tensor_count(files.config), "tensors") as advance:
        weights = load_weights(files.checkpoint, files.config, mesh, DTYPES[dtype], advance)
    return LanguageModel(files, weights, mesh, dtype)


def load_model(
    name: str, *, dtype: str | None = None, mesh: Mesh | None = None, replicate_kv: bool = False, **where
) -> LanguageModel:
    """Loads a model of a family that is known (see docs/families.md).

    Args:
      name: ``demo``, a Hugging Face folder (a path or ``gs://...``), a ``.gguf`` file, or a hub name.
      dtype: of the weights, ``float32`` or ``bfloat16``; default: float32 on a CPU, bfloat16 elsewhere.
      mesh: default: all devices, each taking a share of the bins.
      replicate_kv: where ``model`` has more devices than there are key/value heads, keep copies of each head.
      where: ``revision``, ``tokenizer``, ``last_layer``, ``head`` and ``prepend`` of `open_model`.

    Raises:
      InputError: anything about the files that can't be used; every problem found is named.
    """
    mesh = make_mesh() if mesh is None else mesh
    files = fit_mesh(open_model(name, **where), mesh, replicate_kv)
    return read_weights(files, mesh, choose_dtype(dtype))
