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
from jaxprobe.models.families.family import Parameter, Tensor
from jaxprobe.models.families.fields import Fields
from jaxprobe.models.rope import head_order, read_rotary

MODEL_TYPES = ("gpt_neox",)
GGUF = ()
PREFIXES = ("gpt_neox.", "")
HEADS = ("embed_out.weight", "lm_head.weight")
NOT_READ = r"(embed_out|lm_head)\.weight|.*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)|.*rotary_emb\.inv_freq"


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
