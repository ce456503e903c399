"""Llama, and what its block covers: Mistral, Qwen2 and Qwen3.

- pre-norm blocks: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``; RMS norms with gains
- grouped key/value heads; scores divided by the square root of a head's width
- rotary positions over whole heads, in pairs (i, i + H/2)
- SwiGLU: ``down(silu(gate) * up)``
- biases where the config says so; Qwen2: on query, key and value, which no field says
- Qwen3: an RMS norm of each query and key head before it is turned
- Mistral, Qwen2, Qwen3: attention windows, within which a prompt has to stay
"""

from typing import Any

import numpy as np

from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families import family as shared
from jaxprobe.models.families import llamacpp
from jaxprobe.models.families.family import Parameter, Tensor
from jaxprobe.models.families.fields import Fields
from jaxprobe.models.rope import Rotary, head_order, read_rotary

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
GGUF = ("llama", "qwen2", "qwen3")  # Mistral's are called llama
PREFIXES = ("model.", "")
HEADS = ("lm_head.weight",)
# Old files also carry the rotary tables, which the configuration gives.
NOT_READ = r"lm_head\.weight|.*\.rotary_emb\.inv_freq" + llamacpp.NOT_READ

# model type -> what its class has where a field is absent
_ABSENT: dict[str, dict[str, Any]] = {
    "llama": {"context": 2048},
    "mistral": {"context": 4096 * 32, "kv_heads": 8},
    "qwen2": {"context": 32768, "kv_heads": 32},
    "qwen3": {"context": 32768, "kv_heads": 32, "head_width": 128},
}


def read_config(fields: Fields) -> ModelConfig:
    """A config.json of any generation of transformers."""
    family = fields.take("model_type")
    sizes = shared.read_sizes(fields, **_ABSENT[family])
    biases = ("query", "key", "value") if family == "qwen2" else ()
    if family in ("llama", "qwen3") and fields.flag("attention_bias", False):
        biases = ("query", "key", "value", "output")
    if family == "llama" and fields.flag("mlp_bias", False):
        biases += ("gate", "up", "down")
    for name in ("rope_interleaved", "use_mrope"):
        fields.only(name, False)
    return shared.make_config(
        family,
        sizes,
        fields,
        rotaries=[read_rotary(shared.read_rope(fields), sizes.head_width, sizes.context, fields)],
        norm_epsilon=fields.number("rms_norm_eps", 1e-6, above=0.0),
        limits={"an attention window": _window(family, fields, sizes.layers)},
        activation=fields.one_of("hidden_act", {"silu": "silu"}, "silu"),
        biases=biases,
        qk_norm="head" if family == "qwen3" else "none",
        tied=fields.flag("tie_word_embeddings", False),
        initializer_range=shared.read_initializer(fields),
    )


def _window(family: str, fields: Fields, layers: int) -> int | None:
    """Tokens of the attention window that some layer has; None without."""
    if family == "llama":
        return None
    if family == "mistral":
        return shared.read_window(fields, 4096)
    used, window = fields.flag("use_sliding_window", False), shared.read_window(fields, 4096)
    whole = fields.integer("max_window_layers", 28, least=0)
    types = shared.read_layer_types(fields, layers, lambda layer: used and layer >= whole)
    return window if used and "sliding_attention" in types else None


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """Every parameter of the model."""
    return shared.pre_norm(config)


# parameter -> (name of its product or norm, dimensions)
BLOCK = {
    "attention_norm": ("input_layernorm", ("D",)),
    "query": ("self_attn.q_proj", ("KGH", "D")),
    "key": ("self_attn.k_proj", ("KH", "D")),
    "value": ("self_attn.v_proj", ("KH", "D")),
    "query_norm": ("self_attn.q_norm", ("H",)),
    "key_norm": ("self_attn.k_norm", ("H",)),
    "output": ("self_attn.o_proj", ("D", "KGH")),
    "mlp_norm": ("post_attention_layernorm", ("D",)),
    "gate": ("mlp.gate_proj", ("F", "D")),
    "up": ("mlp.up_proj", ("F", "D")),
    "down": ("mlp.down_proj", ("D", "F")),
}


def tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a Hugging Face checkpoint."""
    found = shared.decoder_tensors("embed_tokens", "norm", BLOCK, "layers.{}.")
    return shared.only_existing(found, parameters(config))


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def read_gguf(architecture: str, keys: Fields, shapes: llamacpp.Shapes, rope: llamacpp.RopeTensors) -> ModelConfig:
    """The configuration in a GGUF file's metadata, the architecture's name taken off the keys.

    Args:
      shapes: of the file's tensors, which also say what has a bias.
      rope: rope's tensors; Llama 3.1's scaling is stored as divisors of the frequencies.
    """
    sizes = llamacpp.read_sizes(keys, shapes)
    rotary = llamacpp.make_rotary(llamacpp.read_rope(keys, sizes.head_width), sizes, keys)
    rotary = _divided(rotary, rope.get("rope_freqs.weight"), keys)
    named = {"query": "attn_q", "key": "attn_k", "value": "attn_v", "output": "attn_output"}
    return shared.make_config(
        architecture,
        sizes,
        keys,
        rotaries=[rotary],
        norm_epsilon=keys.number("attention.layer_norm_rms_epsilon", above=0.0),
        limits={"an attention window": shared.read_window(keys, None, "attention.sliding_window")},
        biases=tuple(name for name, theirs in named.items() if f"blk.0.{theirs}.bias" in shapes),
        qk_norm="head" if architecture == "qwen3" else "none",
        **llamacpp.constants(sizes, shapes),
    )


def _divided(rotary: Rotary, divisors: np.ndarray | None, keys: Fields) -> Rotary:
    if divisors is None:
        return rotary
    if divisors.shape != (rotary.pairs,) or not (divisors > 0).all():
        keys.problem(f"rope_freqs.weight has shape {list(divisors.shape)}; {rotary.pairs} positive numbers are needed.")
        return rotary
    frequencies = np.asarray(rotary.frequencies) / divisors.astype(np.float64)
    return rotary._replace(frequencies=tuple(map(float, frequencies)))


def gguf_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a GGUF file. llama.cpp lays the pairs of Llama's queries and keys side by side."""
    found = llamacpp.tensors(config, parameters(config))
    if config.family == "llama":
        found = shared.turned(found, head_order(config.head_width, config.head_width, interleaved=True))
    return found
