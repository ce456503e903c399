"""GPT-NeoX: Pythia.

- layer norms with bias; attention and MLP read the same stream, ``x + attention(norm(x)) + mlp(norm'(x))``, or one
  after the other where the config says so
- every head has its own keys and values; biases on all products
- rotary positions over the first part of a head's dimensions (a quarter where the config does not say)
- an MLP without a gate: ``down(gelu(up))``, the exact gelu
- query, key and value are fused in the file, alternating head by head
"""

from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families import family as shared
from jaxprobe.models.families import llamacpp
from jaxprobe.models.families.family import Parameter, Tensor
from jaxprobe.models.families.fields import Fields
from jaxprobe.models.rope import head_order, read_rotary

MODEL_TYPES = ("gpt_neox",)
GGUF = ("gptneox",)
PREFIXES = ("gpt_neox.", "")
HEADS = ("embed_out.weight", "lm_head.weight")
NOT_READ = r"(embed_out|lm_head)\.weight|.*\.attention\.(bias|masked_bias)|.*rotary_emb\.inv_freq" + llamacpp.NOT_READ


def read_config(fields: Fields) -> ModelConfig:
    """A config.json of any generation of transformers."""
    family = fields.take("model_type")
    fields.only("num_key_value_heads")
    fields.only("head_dim")
    sizes = shared.read_sizes(fields, context=2048)
    if sizes.width % sizes.heads:
        fields.problem(f"hidden_size={sizes.width} does not divide over num_attention_heads={sizes.heads}.")
    theta, part = fields.number("rotary_emb_base", 10_000.0, above=1.0), fields.take("rotary_pct", 0.25)
    rope = shared.read_rope(fields)
    rotary = read_rotary(
        {"partial_rotary_factor": part} | {name: value for name, value in rope.items() if value is not None},
        sizes.head_width,
        sizes.context,
        fields,
        theta=theta,
        in_part=True,
    )
    return shared.make_config(
        family,
        sizes,
        fields,
        rotaries=[rotary],
        norm="layer",
        norm_epsilon=fields.number("layer_norm_eps", 1e-5, above=0.0),
        biases=(*(("query", "key", "value", "output") if fields.flag("attention_bias", True) else ()), "up", "down"),
        activation=fields.one_of("hidden_act", shared.ACTIVATIONS, "gelu"),
        gated=False,
        parallel=fields.flag("use_parallel_residual", True),
        tied=fields.flag("tie_word_embeddings", False),
        initializer_range=shared.read_initializer(fields),
    )


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """Every parameter of the model."""
    return shared.pre_norm(config)


_BLOCK = {
    "attention_norm": ("input_layernorm", ("D",)),
    "output": ("attention.dense", ("D", "KGH")),
    "mlp_norm": ("post_attention_layernorm", ("D",)),
    "up": ("mlp.dense_h_to_4h", ("F", "D")),
    "down": ("mlp.dense_4h_to_h", ("D", "F")),
}


def tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a Hugging Face checkpoint."""
    found = shared.decoder_tensors("embed_in", "final_layer_norm", _BLOCK, "layers.{}.")
    fused, alternating = "layers.{}.attention.query_key_value", ("query", "key", "value")
    for at, (name, heads) in enumerate(zip(alternating, ("K*GH", "K*H", "K*H"), strict=True)):
        found[name] = Tensor(f"{fused}.weight", (heads, "D"), alternating, at)
        found[f"{name}_bias"] = Tensor(f"{fused}.bias", (heads,), alternating, at)
    found = shared.turned(found, head_order(config.head_width, 2 * config.rotaries[0].turning))
    return shared.only_existing(found, parameters(config))


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def read_gguf(architecture: str, keys: Fields, shapes: llamacpp.Shapes, rope: llamacpp.RopeTensors) -> ModelConfig:
    """The configuration in a GGUF file's metadata; rope's base and the activation, which have no key, as the class."""
    sizes = llamacpp.read_sizes(keys, shapes)
    attention = ("query", "key", "value", "output") if "blk.0.attn_qkv.bias" in shapes else ()
    return shared.make_config(
        "gpt_neox",
        sizes,
        keys,
        rotaries=[llamacpp.make_rotary(llamacpp.read_rope(keys, sizes.head_width), sizes, keys, in_part=True)],
        norm="layer",
        norm_epsilon=keys.number("attention.layer_norm_epsilon", above=0.0),
        biases=(*attention, "up", "down"),
        activation="gelu",
        gated=False,
        parallel=keys.flag("use_parallel_residual", True),
        **llamacpp.constants(sizes, shapes),
    )


def gguf_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a GGUF file, which has all queries, then all keys, then all values."""
    found = llamacpp.tensors(config, parameters(config), fused=True)
    return shared.turned(found, head_order(config.head_width, 2 * config.rotaries[0].turning))
