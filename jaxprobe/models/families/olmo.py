"""OLMo 2 and OLMo 3.

- norms after attention and MLP only: ``x + norm(attention(x))``, then ``x + norm(mlp(x))``; RMS norms
- an RMS norm of all queries and of all keys together, before they are cut into heads
- SwiGLU, grouped key/value heads
- OLMo 3: three sliding layers to one full; a prompt has to stay within the window, in which both are alike. Scaling
  of rotary positions is of full layers only
"""

from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families import family as shared
from jaxprobe.models.families import llama, llamacpp
from jaxprobe.models.families.family import Parameter, Tensor
from jaxprobe.models.families.fields import Fields
from jaxprobe.models.rope import read_rotary

MODEL_TYPES = ("olmo2", "olmo3")
GGUF = ("olmo2",)  # OLMo 3's are called so too
PREFIXES = ("model.", "")
HEADS = ("lm_head.weight",)
NOT_READ = r"lm_head\.weight|.*rotary_emb\.inv_freq" + llamacpp.NOT_READ

_KINDS = ("full_attention", "sliding_attention")


def read_config(fields: Fields) -> ModelConfig:
    """A config.json of any generation of transformers."""
    family = fields.take("model_type")
    sizes = shared.read_sizes(fields, context=2048)
    if family == "olmo2":
        rotaries = [read_rotary(shared.read_rope(fields), sizes.head_width, sizes.context, fields)]
        window, rotary_of_layer = None, ()
    else:
        types = shared.read_layer_types(fields, sizes.layers, lambda layer: (layer + 1) % 4 != 0)
        window = shared.read_window(fields, 4096) if "sliding_attention" in types else fields.take("sliding_window")
        # As the class reads it: rope_theta is of the full layers; sliding ones have the default.
        by_kind = shared.read_rope_by_kind(fields, {"full_attention": fields.take("rope_theta")})
        rotaries = [
            read_rotary(by_kind[kind], sizes.head_width, sizes.context, fields, theta=500_000.0) for kind in _KINDS
        ]
        rotary_of_layer = [_KINDS.index(kind) for kind in types]
        window = window if "sliding_attention" in types else None
    return shared.make_config(
        family,
        sizes,
        fields,
        rotaries=rotaries,
        rotary_of_layer=rotary_of_layer,
        limits={"an attention window": window},
        norm_epsilon=fields.number("rms_norm_eps", 1e-5, above=0.0),
        biases=("query", "key", "value", "output") if fields.flag("attention_bias", False) else (),
        qk_norm="width",
        activation=fields.one_of("hidden_act", shared.ACTIVATIONS, "silu"),
        tied=fields.flag("tie_word_embeddings", False),
        initializer_range=shared.read_initializer(fields),
    )


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """Every parameter of the model."""
    return (
        shared.around_blocks(config)
        | shared.attention(config)
        | shared.norm("attention_out_norm", config)
        | shared.mlp(config)
        | shared.norm("mlp_out_norm", config)
    )


_BLOCK = llama.BLOCK | {
    "query_norm": ("self_attn.q_norm", ("KGH",)),
    "key_norm": ("self_attn.k_norm", ("KH",)),
    "attention_out_norm": ("post_attention_layernorm", ("D",)),
    "mlp_out_norm": ("post_feedforward_layernorm", ("D",)),
}


def tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a Hugging Face checkpoint."""
    found = shared.decoder_tensors("embed_tokens", "norm", _BLOCK, "layers.{}.")
    return shared.only_existing(found, parameters(config))


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def read_gguf(architecture: str, keys: Fields, shapes: llamacpp.Shapes, rope: llamacpp.RopeTensors) -> ModelConfig:
    """The configuration in a GGUF file's metadata; OLMo 3 is what has a window."""
    sizes = llamacpp.read_sizes(keys, shapes)
    window, sliding = llamacpp.read_windows(keys, sizes.layers, 4)
    rotaries, rotary_of_layer = llamacpp.read_rotaries(keys, sizes, sliding)
    return shared.make_config(
        "olmo3" if window else "olmo2",
        sizes,
        keys,
        rotaries=rotaries,
        rotary_of_layer=rotary_of_layer,
        limits={"an attention window": window},
        norm_epsilon=keys.number("attention.layer_norm_rms_epsilon", above=0.0),
        qk_norm="width",
        **llamacpp.constants(sizes, shapes),
    )


def gguf_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a GGUF file."""
    return llamacpp.tensors(config, parameters(config))
