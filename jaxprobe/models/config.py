"""A model's shape and constants, read from its own checkpoint: Hugging Face config.json or GGUF metadata."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxprobe.errors import InputError


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes by the alphabet's letters, and the constants of the arithmetic. There are no defaults.

    ``rope_frequencies`` are the H/2 angles, in radians a position, by which a pair of query or key
    dimensions turns; every kind of rope scaling is only another set of them.
    """

    layers: int  # L
    width: int  # D
    kv_heads: int  # K
    queries_per_kv: int  # G
    head_width: int  # H
    mlp_width: int  # F
    vocabulary: int  # V
    context: int  # positions that the model was made for
    norm_epsilon: float
    rope_frequencies: tuple[float, ...]
    kv_copies: int = 1  # of each key/value head of the checkpoint, side by side; more than one only on request

    def with_kv_copies(self, copies: int) -> "LlamaConfig":
        """The same model with every key/value head held ``copies`` times, each for a part of its queries."""
        return dataclasses.replace(
            self,
            kv_heads=self.kv_heads * copies,
            queries_per_kv=self.queries_per_kv // copies,
            kv_copies=self.kv_copies * copies,
        )

    def sizes(self) -> dict[str, int]:
        """The size behind each letter of a weight's shape."""
        return {
            "L": self.layers,
            "D": self.width,
            "K": self.kv_heads,
            "G": self.queries_per_kv,
            "H": self.head_width,
            "F": self.mlp_width,
            "V": self.vocabulary,
        }

    def states(self) -> tuple[str, ...]:
        """Every state's name: the embedding, the stream after each block, and the final norm of the last."""
        return ("embed", *map(str, range(self.layers)), "final_norm")

    def parameter_count(self) -> int:
        """Numbers in the weights that a forward to the last hidden state reads (no output head)."""
        attention = 2 * self.width * self.kv_heads * self.head_width * (self.queries_per_kv + 1)
        block = attention + 3 * self.width * self.mlp_width + 2 * self.width
        return self.layers * block + self.vocabulary * self.width + self.width


# ---- Rotary embedding -------------------------------------------------------------------------------------------


def _plain_frequencies(theta: float, head_width: int) -> np.ndarray:
    return float(theta) ** -(np.arange(0, head_width, 2, dtype=np.float64) / head_width)


def _linear(frequencies: np.ndarray, factor: float) -> np.ndarray:
    return frequencies / factor


def _llama3(
    frequencies: np.ndarray,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> np.ndarray:
    """Long wavelengths are stretched by ``factor``, short ones kept, those between blended (Llama 3.1)."""
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor


# kind -> (function, the parameters that it needs)
ROPE_KINDS: dict[str, tuple[Callable[..., np.ndarray], tuple[str, ...]]] = {
    "default": (lambda frequencies: frequencies, ()),
    "linear": (_linear, ("factor",)),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")),
}

# Llama 1 and 2 were published before the field existed; their code has the constant of the rotary paper.
THETA_BEFORE_THE_FIELD = 10_000.0


def _rope_frequencies(rope: Mapping[str, Any], head_width: int, problems: list[str]) -> tuple[float, ...]:
    """Frequencies from ``rope_type``, ``rope_theta`` and what that type needs."""
    rope = dict(rope)
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    theta = rope.pop("rope_theta")
    rope.pop("type", None)
    if kind not in ROPE_KINDS:
        problems.append(f"Rope type {kind!r} is not one of {', '.join(ROPE_KINDS)}. This model can't be run exactly.")
        return ()
    function, needed = ROPE_KINDS[kind]
    missing, unknown = set(needed) - set(rope), set(rope) - set(needed)
    if missing or unknown:
        problems.append(
            f"Rope type {kind!r} takes {', '.join(needed) or 'no parameters'}; "
            f"found {', '.join(sorted(rope)) or 'none'}. This model can't be run exactly."
        )
        return ()
    return tuple(float(f) for f in function(_plain_frequencies(theta, head_width), **rope))


# ---- Hugging Face config.json -----------------------------------------------------------------------------------

# Fields with one value under which the forward here is the model's own.
_REQUIRED_VALUES = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_interleaved": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
# Fields that don't change a hidden state in a forward pass.
_WITHOUT_EFFECT = {
    "architectures", "attention_dropout", "auto_map", "bos_token_id", "dtype", "eos_token_id", "initializer_range",
    "is_llama_config", "pad_token_id", "pretraining_tp", "tie_word_embeddings", "tokenizer_class", "torch_dtype",
    "transformers.js_config", "transformers_version", "unsloth_fixed", "use_cache", "_name_or_path",
    "_attn_implementation", "_attn_implementation_autoset", "output_attentions", "output_hidden_states", "return_dict",
}  # fmt: skip


def from_hugging_face(fields: Mapping[str, Any]) -> LlamaConfig:
    """The configuration in a config.json, written by any generation of transformers.

    Raises:
      InputError: a missing field, or one that is not understood; every such field is named.
    """
    rest = dict(fields)
    problems: list[str] = []
    if rest.get("model_type") != "llama":
        raise InputError(f"model_type is {rest.get('model_type')!r}; models of type 'llama' can be read.")

    def take(name: str) -> Any:
        if rest.get(name) is None:
            problems.append(f"config.json has no {name!r}. Use the complete folder of a Hugging Face model.")
        return rest.pop(name, None) or 1

    width, heads = take("hidden_size"), take("num_attention_heads")
    kv_heads = rest.pop("num_key_value_heads", None) or heads  # absent in files older than grouped attention
    head_width = rest.pop("head_dim", None) or width // heads
    rope = rest.pop("rope_parameters", None)
    theta, scaling = rest.pop("rope_theta", None), rest.pop("rope_scaling", None)
    # Where both are there, transformers 5 takes the older field whole.
    rope = {"rope_theta": theta or THETA_BEFORE_THE_FIELD, **(scaling or rope or {})}
    config = LlamaConfig(
        layers=take("num_hidden_layers"),
        width=width,
        kv_heads=kv_heads,
        queries_per_kv=heads // kv_heads,
        head_width=head_width,
        mlp_width=take("intermediate_size"),
        vocabulary=take("vocab_size"),
        context=take("max_position_embeddings"),
        norm_epsilon=take("rms_norm_eps"),
        rope_frequencies=_rope_frequencies(rope, head_width, problems),
    )
    if heads % kv_heads:
        problems.append(f"{heads} query heads do not divide over {kv_heads} key/value heads.")
    for name, value in rest.items():
        if name in _REQUIRED_VALUES and value != _REQUIRED_VALUES[name]:
            problems.append(f"config.json has {name}={value!r}; only {_REQUIRED_VALUES[name]!r} is implemented.")
        elif name not in _REQUIRED_VALUES and name not in _WITHOUT_EFFECT:
            problems.append(
                f"config.json has {name}={value!r}, a field that is not understood: it may change the hidden states."
            )
    if problems:
        raise InputError(*problems)
    return config


# ---- GGUF metadata ----------------------------------------------------------------------------------------------

_GGUF_WITHOUT_EFFECT = {"vocab_size", "rope.dimension_count", "attention.key_length", "attention.value_length"}


def from_gguf(
    metadata: Mapping[str, Any], vocabulary: int, frequency_divisors: np.ndarray | None = None
) -> LlamaConfig:
    """The configuration in a GGUF file's ``llama.*`` metadata.

    Args:
      metadata: key -> value of the file.
      vocabulary: rows of the embedding.
      frequency_divisors: the tensor ``rope_freqs.weight`` [H/2], which is how Llama 3.1's rope is stored.

    Raises:
      InputError: another architecture, a missing key, or a key that is not understood; every such key is named.
    """
    problems: list[str] = []
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise InputError(f"GGUF architecture is {architecture!r}; 'llama' can be read.")
    rest = {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}

    def take(name: str) -> Any:
        if name not in rest:
            problems.append(f"GGUF metadata has no 'llama.{name}'. The file is not complete.")
        return rest.pop(name, 1)

    width, heads = take("embedding_length"), take("attention.head_count")
    kv_heads = rest.pop("attention.head_count_kv", heads)
    head_width = rest.get("attention.key_length", width // heads)
    if rest.get("rope.dimension_count", head_width) != head_width:
        problems.append(
            f"Rope turns {rest['rope.dimension_count']} of {head_width} dimensions; only all is implemented."
        )
    if rest.get("attention.value_length", head_width) != head_width:
        problems.append(f"Values are {rest['attention.value_length']} wide and keys {head_width}; they must be equal.")
    kind = rest.pop("rope.scaling.type", "none")
    rope: dict[str, Any] = {
        "rope_type": {"none": "default"}.get(kind, kind),
        "rope_theta": rest.pop("rope.freq_base", THETA_BEFORE_THE_FIELD),
    }
    if "rope.scaling.factor" in rest:
        rope["factor"] = rest.pop("rope.scaling.factor")
    frequencies = _rope_frequencies(rope, head_width, problems)
    if frequency_divisors is not None and frequencies:
        frequencies = tuple(float(f) for f in np.asarray(frequencies) / frequency_divisors.astype(np.float64))
    config = LlamaConfig(
        layers=take("block_count"),
        width=width,
        kv_heads=kv_heads,
        queries_per_kv=heads // kv_heads,
        head_width=head_width,
        mlp_width=take("feed_forward_length"),
        vocabulary=vocabulary,
        context=take("context_length"),
        norm_epsilon=take("attention.layer_norm_rms_epsilon"),
        rope_frequencies=frequencies,
    )
    problems += [
        f"GGUF metadata has llama.{key}={rest[key]!r}, a key that is not understood: it may change the hidden states."
        for key in sorted(set(rest) - _GGUF_WITHOUT_EFFECT)
    ]
    if problems:
        raise InputError(*problems)
    return config
