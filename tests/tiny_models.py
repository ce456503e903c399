"""Tiny random models of every family, saved by transformers itself, and their states in float64.

Every parameter is filled with noise: transformers starts biases at zero and gains at one (Gemma's at zero), and with
these a bias or a gain that is left out passes.
"""

import contextlib
import json
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import transformers

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
_GPT2_NAMES = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


class Variant(NamedTuple):
    """A model to be: its type, what its config has beside the sizes, and fields that its file has or lacks."""

    model_type: str
    name: str
    config: dict[str, Any]
    sizes: dict[str, int] = {}  # noqa: RUF012
    rewrite: dict[str, Any] = {}  # noqa: RUF012  of config.json after saving; None takes a field out

    @property
    def id(self) -> str:
        return f"{self.model_type} {self.name}"


def save(variant: Variant, folder, *, dtype=torch.float32, seed=0, **options) -> None:
    """Writes the model's folder."""
    torch.manual_seed(seed)
    sizes = SIZES | variant.sizes
    if variant.model_type == "gpt2":
        sizes = {_GPT2_NAMES.get(name, name): size for name, size in sizes.items()}
    extra = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2} if variant.model_type != "gemma3" else {}
    if variant.model_type == "gemma3":
        text = transformers.Gemma3TextConfig(**sizes, **variant.config, pad_token_id=None)
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.Gemma3Config(text_config=text.to_dict(), vision_config=vision, image_token_index=5)
        model = transformers.Gemma3ForConditionalGeneration(config)
    else:
        config = transformers.AutoConfig.for_model(variant.model_type, **(sizes | variant.config | extra))
        model = transformers.AutoModelForCausalLM.from_config(config)
    noise(model)
    model.to(dtype).save_pretrained(folder, **options)
    if variant.rewrite:
        path = folder / "config.json"
        fields = json.loads(path.read_text()) | variant.rewrite
        taken_out = {name for name, value in variant.rewrite.items() if value is None}
        path.write_text(json.dumps({name: value for name, value in fields.items() if name not in taken_out}))


def noise(model: torch.nn.Module) -> None:
    """Every parameter: matrices anew, gains and biases moved away from where they start."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))


def read_back(folder, dtype=torch.float32) -> torch.nn.Module:
    """The model as transformers reads it, by its eager code (which alone has every cap)."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    auto = transformers.AutoModelForImageTextToText if kind == "gemma3" else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


@contextlib.contextmanager
def float64_throughout():
    """`double()` alone leaves the norms, the rotary tables and the softmax in float32, which the code asks for."""
    wide = mock.patch.multiple(torch, float32=torch.float64, float=torch.float64)
    with wide, mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def true_states(folder, sequences) -> dict[str, np.ndarray]:
    """State -> [N, D] at each sequence's last token: transformers in float64."""
    model = read_back(folder).double()
    with float64_throughout():
        return states_of(model, sequences)


def states_of(model: torch.nn.Module, sequences) -> dict[str, np.ndarray]:
    """The same of any model; sequences of one length run at once, so that none is padded.

    The state before the final norm is taken by a hook: transformers' last is after it.
    """
    decoder = (
        model.model.language_model
        if hasattr(model.model if hasattr(model, "model") else model, "language_model")
        else model.base_model
    )
    blocks = decoder.h if hasattr(decoder, "h") else decoder.layers
    last: dict[str, Any] = {}
    handle = blocks[-1].register_forward_hook(lambda module, args, output: last.update(state=output))
    found: dict[str, list] = {
        state: [None] * len(sequences) for state in ("embed", *map(str, range(len(blocks))), "final_norm")
    }
    by_length: dict[int, list[int]] = {}
    for row, sequence in enumerate(sequences):
        by_length.setdefault(len(sequence), []).append(row)
    with torch.inference_mode():
        for rows in by_length.values():
            states = model(torch.tensor([sequences[row] for row in rows]), output_hidden_states=True).hidden_states
            before_norm = last["state"][0] if isinstance(last["state"], tuple) else last["state"]
            for name, state in zip(found, [*states[:-1], before_norm, states[-1]], strict=True):
                for row, values in zip(rows, state[:, -1].to(torch.float64).numpy(), strict=True):
                    found[name][row] = values
    handle.remove()
    return {name: np.array(rows) for name, rows in found.items()}
