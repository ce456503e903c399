"""Llama, and what its block covers: Mistral, Qwen2 and Qwen3.

- pre-norm blocks: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``; RMS norms with gains
- grouped key/value heads; scores divided by the square root of a head's width
- rotary positions over whole heads, in pairs (i, i + H/2)
- SwiGLU: ``down(silu(gate) * up)``
- biases where the config says so; Qwen2: on query, key and value, which no field says
- Qwen3: an RMS norm of each query and key head before it is turned
- Mistral, Qwen2, Qwen3: attention windows, within which a prompt has to stay
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families import family as shared
from jaxprobe.models.families.family import Parameter, Sizes, Tensor
from jaxprobe.models.families.fields import MOST, Fields
from jaxprobe.models.rope import Rotary, head_order, read_rotary

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
GGUF = ("llama", "qwen2", "qwen3")  # Mistral's are called llama
PREFIXES = ("model.", "")
HEADS = ("lm_head.weight",)
# Old files also carry the rotary tables, which the configuration gives.
NOT_READ = r"lm_head\.weight|output\.weight|rope_freqs\.weight|.*\.rotary_emb\.inv_freq"

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

GGUF_BLOCK = {
    "attention_norm": ("attn_norm", ("D",)),
    "query": ("attn_q", ("KGH", "D")),
    "key": ("attn_k", ("KH", "D")),
    "value": ("attn_v", ("KH", "D")),
    "query_norm": ("attn_q_norm", ("H",)),
    "key_norm": ("attn_k_norm", ("H",)),
    "output": ("attn_output", ("D", "KGH")),
    "mlp_norm": ("ffn_norm", ("D",)),
    "gate": ("ffn_gate", ("F", "D")),
    "up": ("ffn_up", ("F", "D")),
    "down": ("ffn_down", ("D", "F")),
}


def read_gguf(
    architecture: str, keys: Fields, shapes: Mapping[str, tuple[int, ...]], divisors: np.ndarray | None
) -> ModelConfig:
    """The configuration in a GGUF file's metadata, the architecture's name taken off the keys.

    Args:
      shapes: of the file's tensors, which also say what has a bias or a norm.
      divisors: the tensor ``rope_freqs.weight`` [H/2], which is how Llama 3.1's rope is stored.
    """
    sizes = read_gguf_sizes(keys, shapes)
    rotary = _divided(read_gguf_rotary(keys, sizes), divisors, keys)
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
        tied="output.weight" not in shapes,
        initializer_range=gguf_initializer(sizes),
    )


def read_gguf_sizes(keys: Fields, shapes: Mapping[str, tuple[int, ...]]) -> Sizes:
    """Sizes out of a GGUF file's metadata."""
    width, heads = keys.integer("embedding_length"), keys.integer("attention.head_count", most=2**16)
    head_width = keys.integer("attention.key_length", max(width // heads, 1), most=2**16)
    for name in ("rope.dimension_count", "attention.value_length"):
        keys.only(name, head_width)
    keys.take("vocab_size")
    return Sizes(
        layers=keys.integer("block_count", most=MOST["layers"]),
        width=width,
        heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", heads, most=2**16),
        head_width=head_width,
        mlp_width=keys.integer("feed_forward_length"),
        vocabulary=shapes["token_embd.weight"][0],
        context=keys.integer("context_length", most=MOST["context"]),
    )


def read_gguf_rotary(keys: Fields, sizes: Sizes) -> Rotary:
    """The rotary that all layers have."""
    kind = keys.take("rope.scaling.type", "none")
    rope = {"rope_type": "default" if kind == "none" else kind, "rope_theta": keys.take("rope.freq_base")}
    rope["factor"] = keys.take("rope.scaling.factor")
    return read_rotary(rope, sizes.head_width, sizes.context, keys, kinds=("default", "linear"))


def gguf_initializer(sizes: Sizes) -> float:
    """The spread of matrices before training, which GGUF has no field for.

    The one under which a product keeps the size of what it is given; the demo model's published one (1/24 at width
    576) is that.
    """
    return sizes.width**-0.5


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
    found = shared.decoder_tensors("token_embd", "output_norm", GGUF_BLOCK, "blk.{}.")
    if config.family == "llama":
        found = shared.turned(found, head_order(config.head_width, config.head_width, interleaved=True))
    return shared.only_existing(found | {"head": Tensor("output.weight", ("V", "D"))}, parameters(config))
