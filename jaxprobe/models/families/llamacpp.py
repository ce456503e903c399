"""What GGUF files of every family share: llama.cpp's keys for sizes, rope and windows, and its names of tensors.

Source: llama.cpp's converter (``convert_hf_to_gguf.py``) for what it writes, its loader for what an absent key means.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families import family as shared
from jaxprobe.models.families.family import Parameter, Sizes, Tensor
from jaxprobe.models.families.fields import MOST, Fields
from jaxprobe.models.rope import Rotary, read_rotary

Shapes = Mapping[str, tuple[int, ...]]
# The small tensors of rope, such as ``rope_freqs.weight``: name -> numbers.
RopeTensors = Mapping[str, np.ndarray]

# The output head of a run without one, and rope's tensors, which the configuration has.
NOT_READ = r"|output\.weight|rope_(freqs|factors_long|factors_short)\.weight"

_BLOCK = {
    "attention_norm": ("attn_norm", ("D",)),
    "query": ("attn_q", ("KGH", "D")),
    "key": ("attn_k", ("KH", "D")),
    "value": ("attn_v", ("KH", "D")),
    "output": ("attn_output", ("D", "KGH")),
    "attention_out_norm": ("post_attention_norm", ("D",)),
    "mlp_norm": ("ffn_norm", ("D",)),
    "gate": ("ffn_gate", ("F", "D")),
    "up": ("ffn_up", ("F", "D")),
    "down": ("ffn_down", ("D", "F")),
    "mlp_out_norm": ("post_ffw_norm", ("D",)),
}
_QK_NORMS = {"none": ("", ""), "head": ("H", "H"), "width": ("KGH", "KH")}


def tensors(config: ModelConfig, parameters: Mapping[str, Parameter], *, fused: bool = False) -> dict[str, Tensor]:
    """Where each parameter lies in a GGUF file that has the usual names.

    Args:
      fused: whether query, key and value are one tensor, one after the other.
    """
    query, key = _QK_NORMS[config.qk_norm]
    norms = {"query_norm": ("attn_q_norm", (query,)), "key_norm": ("attn_k_norm", (key,))}
    found = shared.decoder_tensors("token_embd", "output_norm", _BLOCK | norms, "blk.{}.")
    found["head"] = Tensor("output.weight", ("V", "D"))
    found["positions"] = Tensor("position_embd.weight", ("P", "D"))
    if fused:
        groups = ("KGH", "KH", "KH")
        for at, name in enumerate(("query", "key", "value")):
            found[name] = Tensor("blk.{}.attn_qkv.weight", (groups[at], "D"), groups, at)
            found[f"{name}_bias"] = Tensor("blk.{}.attn_qkv.bias", (groups[at],), groups, at)
    return shared.only_existing(found, parameters)


def read_sizes(keys: Fields, shapes: Shapes) -> Sizes:
    """Sizes out of a GGUF file's metadata."""
    width, heads = keys.integer("embedding_length"), keys.integer("attention.head_count", most=2**16)
    head_width = keys.integer("attention.key_length", max(width // heads, 1), most=2**16)
    keys.only("attention.value_length", head_width)
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


def read_rope(keys: Fields, head_width: int) -> dict[str, Any]:
    """Rope settings of full layers under the names that config.json has for them."""
    kind = keys.take("rope.scaling.type", "none")
    keys.take("rope.scaling.finetuned")
    turned = keys.integer("rope.dimension_count", head_width, most=2**16)
    return {
        "rope_type": "default" if kind == "none" else kind,
        "rope_theta": keys.take("rope.freq_base"),
        # Half a dimension more: the part times the width is rounded down, and must not lose one.
        "partial_rotary_factor": None if turned == head_width else (turned + 0.5) / head_width,
        "factor": keys.take("rope.scaling.factor"),
        "original_max_position_embeddings": keys.take("rope.scaling.original_context_length"),
        "attention_factor": keys.take("rope.scaling.yarn_attn_factor"),
        "beta_fast": keys.take("rope.scaling.yarn_beta_fast"),
        "beta_slow": keys.take("rope.scaling.yarn_beta_slow"),
    }


def make_rotary(settings: Mapping[str, Any], sizes: Sizes, keys: Fields, *, in_part: bool = False) -> Rotary:
    """The rotary of such settings."""
    kinds = ("default", "linear", "yarn", "longrope")
    return read_rotary(settings, sizes.head_width, sizes.context, keys, in_part=in_part, kinds=kinds)


def read_rotaries(
    keys: Fields, sizes: Sizes, sliding: Sequence[bool], theta: float | None = None
) -> tuple[list[Rotary], list[int]]:
    """The rotaries of full and of sliding layers, which have no scaling, and which of them each layer has.

    Args:
      theta: of sliding layers where the file does not say; None: that of full ones.
    """
    settings = read_rope(keys, sizes.head_width)
    local = {"rope_theta": keys.take("rope.freq_base_swa", settings["rope_theta"] if theta is None else theta)}
    both = [make_rotary(one, sizes, keys) for one in (settings, local)]
    return (both if any(sliding) else both[:1]), [int(one) for one in sliding]


def read_windows(keys: Fields, layers: int, period: int, absent: int | None = None) -> tuple[int | None, list[bool]]:
    """(tokens of the attention window or None, for each layer whether it has it).

    Args:
      period: the last of so many layers is full, where the file has no pattern of its own.
      absent: the window where the file does not say.
    """
    window = keys.integer("attention.sliding_window", absent, least=0, most=MOST["context"])
    pattern = keys.take("attention.sliding_window_pattern", period)
    if isinstance(pattern, list) and len(pattern) == layers and all(isinstance(one, bool) for one in pattern):
        sliding = pattern
    elif type(pattern) is int and pattern >= 0:
        sliding = [pattern == 0 or (layer + 1) % pattern != 0 for layer in range(layers)]
    else:
        keys.problem(
            f"{keys.source} has attention.sliding_window_pattern={keys.shown(pattern)}; a whole number, or true or "
            f"false for each of {layers} layers, is needed."
        )
        sliding = [False] * layers
    if not window:
        sliding = [False] * layers
    return (window if any(sliding) else None), sliding


def constants(sizes: Sizes, shapes: Shapes) -> dict[str, Any]:
    """What a file says of every family by what is in it, and what it has no key for.

    The spread of matrices before training is the one under which a product keeps the size of what it is given; the
    demo model's published one (1/24 at width 576) is that.
    """
    return {"tied": "output.weight" not in shapes, "initializer_range": sizes.width**-0.5}
