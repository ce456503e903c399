"""Phi-3 and Phi-4.

- Llama's block: pre-norm RMS, SwiGLU, grouped key/value heads, no biases
- query, key and value are fused in the file, and so are gate and up, each lying one after the other
- rotary positions over the first part of a head's dimensions where the config says so; "longrope": a factor for each
  pair, and an amplitude. Longer prompts than the original context have other factors and are refused
"""

from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families import family as shared
from jaxprobe.models.families import llamacpp
from jaxprobe.models.families.family import Parameter, Tensor
from jaxprobe.models.families.fields import MOST, Fields
from jaxprobe.models.rope import head_order, read_rotary

MODEL_TYPES = ("phi3",)
GGUF = ("phi3",)
PREFIXES = ("model.", "")
HEADS = ("lm_head.weight",)
NOT_READ = r"lm_head\.weight|.*rotary_emb\.inv_freq|model\.embed_tokens_extend\..*" + llamacpp.NOT_READ

_ORIGINAL = "the original context, beyond which rope has other factors"


def read_config(fields: Fields) -> ModelConfig:
    """A config.json of any generation of transformers."""
    family = fields.take("model_type")
    sizes = shared.read_sizes(fields, context=4096)
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        fields.only(name, False)
    for name in ("full_attn_mod", "interpolate_factor"):
        fields.only(name, 1)
    original = fields.integer("original_max_position_embeddings", 4096, most=MOST["context"])
    rope = {name: value for name, value in shared.read_rope(fields).items() if value is not None}
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaled = kind in ("su", "yarn", "longrope")
    if scaled:
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": original}
    rope.pop("type", None)
    return shared.make_config(
        family,
        sizes,
        fields,
        rotaries=[
            read_rotary(rope, sizes.head_width, sizes.context, fields, in_part=True, kinds=("default", "longrope"))
        ],
        norm_epsilon=fields.number("rms_norm_eps", 1e-5, above=0.0),
        limits={"an attention window": shared.read_window(fields, None), _ORIGINAL: original if scaled else None},
        activation=fields.one_of("hidden_act", shared.ACTIVATIONS, "silu"),
        tied=fields.flag("tie_word_embeddings", False),
        initializer_range=shared.read_initializer(fields),
    )


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """Every parameter of the model."""
    return shared.pre_norm(config)


_BLOCK = {
    "attention_norm": ("input_layernorm", ("D",)),
    "output": ("self_attn.o_proj", ("D", "KGH")),
    "mlp_norm": ("post_attention_layernorm", ("D",)),
    "down": ("mlp.down_proj", ("D", "F")),
}


def tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a Hugging Face checkpoint."""
    found = shared.decoder_tensors("embed_tokens", "norm", _BLOCK, "layers.{}.")
    fused = ("KGH", "KH", "KH")
    for at, name in enumerate(("query", "key", "value")):
        found[name] = Tensor("layers.{}.self_attn.qkv_proj.weight", (fused[at], "D"), fused, at)
    for at, name in enumerate(("gate", "up")):
        found[name] = Tensor("layers.{}.mlp.gate_up_proj.weight", ("F", "D"), ("F", "F"), at)
    found = shared.turned(found, head_order(config.head_width, 2 * config.rotaries[0].turning))
    return shared.only_existing(found, parameters(config))


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def read_gguf(architecture: str, keys: Fields, shapes: llamacpp.Shapes, rope: llamacpp.RopeTensors) -> ModelConfig:
    """The configuration in a GGUF file's metadata; "longrope" is what has factors among the tensors."""
    sizes = llamacpp.read_sizes(keys, shapes)
    original = keys.integer("rope.scaling.original_context_length", None, most=MOST["context"])
    settings = llamacpp.read_rope(keys, sizes.head_width)
    amplitude = keys.take("rope.scaling.attn_factor")
    factors = {f"{kind}_factor": rope.get(f"rope_factors_{kind}.weight") for kind in ("short", "long")}
    scaled = settings["rope_type"] == "longrope" or any(found is not None for found in factors.values())
    if scaled:
        settings |= {name: found.tolist() for name, found in factors.items() if found is not None}
        settings |= {
            "rope_type": "longrope",
            "attention_factor": amplitude,
            "original_max_position_embeddings": original,
        }
    return shared.make_config(
        architecture,
        sizes,
        keys,
        rotaries=[llamacpp.make_rotary(settings, sizes, keys, in_part=True)],
        norm_epsilon=keys.number("attention.layer_norm_rms_epsilon", above=0.0),
        limits={
            "an attention window": keys.integer("attention.sliding_window", None, least=0, most=MOST["context"]),
            _ORIGINAL: original if scaled else None,
        },
        **llamacpp.constants(sizes, shapes),
    )


def gguf_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a GGUF file, which calls gate and up together "up"."""
    found = llamacpp.tensors(config, parameters(config), fused=True)
    for at, name in enumerate(("gate", "up")):
        found[name] = Tensor("blk.{}.ffn_up.weight", ("F", "D"), ("F", "F"), at)
    return shared.turned(found, head_order(config.head_width, 2 * config.rotaries[0].turning))
