"""A language model ready to run: its configuration, sharded weights and tokenizer."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from jaxprobe.errors import InputError
from jaxprobe.mesh import make_mesh
from jaxprobe.models.config import LlamaConfig
from jaxprobe.models.llama import Llama
from jaxprobe.models.source import ModelSource, find_model
from jaxprobe.models.tokenizer import load_tokenizer
from jaxprobe.models.weights import check_tensors, load_weights, open_checkpoint

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class LanguageModel(NamedTuple):
    """What an extraction needs of a model. ``config.layers`` counts the blocks that were loaded."""

    source: ModelSource
    config: LlamaConfig
    weights: Llama
    tokenizer: PreTrainedTokenizerFast
    mesh: Mesh
    dtype: str
    complete: bool  # whether every block is loaded, so that the final norm has its meaning


def load_model(
    name: str,
    *,
    revision: str | None = None,
    tokenizer: str | None = None,
    dtype: str | None = None,
    last_layer: int | None = None,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Loads a Llama-family model.

    Args:
      name: ``demo``, a Hugging Face folder, a ``.gguf`` file, or a hub name.
      revision: of a hub model.
      tokenizer: a folder or hub name, where the model's own is not to be used.
      dtype: of the weights, ``float32`` or ``bfloat16``; default: float32 on a CPU, bfloat16 elsewhere.
      last_layer: the last block wanted; later ones are neither read nor run.
      mesh: default: all devices, each taking a share of the bins.

    Raises:
      InputError: anything about the files that can't be used; every problem found is named.
    """
    mesh = make_mesh() if mesh is None else mesh
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}; float16 overflows in real models.")
    source = find_model(name, revision)
    checkpoint = open_checkpoint(source.path)
    config = checkpoint.config()
    layers = config.layers if last_layer is None else last_layer + 1
    if not 1 <= layers <= config.layers:
        raise InputError(f"Layer {last_layer} does not exist: {source.name} has layers 0 to {config.layers - 1}.")
    check_tensors(checkpoint, config, layers)
    part = dataclasses.replace(config, layers=layers)
    return LanguageModel(
        source=source,
        config=part,
        tokenizer=load_tokenizer(source, tokenizer),
        weights=load_weights(checkpoint, part, mesh, DTYPES[dtype]),
        mesh=mesh,
        dtype=dtype,
        complete=layers == config.layers,
    )
