"""Gemma 2 and Gemma 3 (of the multimodal Gemma 3 the text model).

- norms before and after attention and MLP: ``x + norm(attention(norm(x)))``; RMS norms whose file holds gain - 1
- scores divided by the square root of ``query_pre_attn_scalar``; Gemma 2 caps them, and the logits
- gated MLP with gelu in its tanh form
- the embedding times the square root of the width
- sliding and full layers in turns (Gemma 2: every other one, Gemma 3: five to one); a prompt has to stay within the
  window, in which both are alike
- Gemma 3: an RMS norm of each query and key head, and two rotaries, of sliding and of full layers
"""

from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families import family as shared
from jaxprobe.models.families import llama, llamacpp
from jaxprobe.models.families.family import WITHOUT_EFFECT, Parameter, Tensor
from jaxprobe.models.families.fields import Fields
from jaxprobe.models.rope import read_rotary

MODEL_TYPES = ("gemma2", "gemma3_text", "gemma3")
GGUF = ("gemma2", "gemma3")
PREFIXES = ("model.", "language_model.model.", "model.language_model.", "")
HEADS = ("lm_head.weight", "language_model.lm_head.weight")
NOT_READ = (
    r"(.*\.)?lm_head\.weight|(model\.)?(vision_tower|multi_modal_projector)\..*|.*rotary_emb\.inv_freq"
    + llamacpp.NOT_READ
)

_KINDS = ("full_attention", "sliding_attention")
# What a multimodal config says beside its text model.
_OF_IMAGES = frozenset({
    "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index",
    "initializer_range", "boi_token_id", "eoi_token_id", "image_token_id",
})  # fmt: skip


def read_config(fields: Fields) -> ModelConfig:
    """A config.json of any generation of transformers; a text_config is sparse, the class having the rest."""
    family = fields.take("model_type")
    if family == "gemma3":
        text = fields.mapping("text_config") or {}
        fields.without_effect(_OF_IMAGES)
        tied = fields.flag("tie_word_embeddings", True)
        inner = Fields({"tie_word_embeddings": tied} | text, "text_config of config.json", fields.problems)
        inner.only("model_type", "gemma3_text")
        config = _read_text("gemma3_text", inner)
        inner.without_effect(WITHOUT_EFFECT)
        inner.refuse_the_rest()
        return config
    return _read_text(family, fields)


def _read_text(family: str, fields: Fields) -> ModelConfig:
    second = family == "gemma2"
    sizes = shared.read_sizes(
        fields,
        context=8192 if second else 131_072,
        kv_heads=4,
        head_width=256,
        heads=8,
        width=2304,
        layers=26,
        mlp_width=9216,
        vocabulary=256_000 if second else 262_208,
    )
    pattern = 2 if second else fields.integer("sliding_window_pattern", 6)
    fields.take("_sliding_window_pattern")
    types = shared.read_layer_types(fields, sizes.layers, lambda layer: (layer + 1) % pattern != 0)
    window = shared.read_window(fields, 4096)
    fields.only("use_bidirectional_attention", False)
    fields.take("hidden_act")  # beside hidden_activation, which counts
    divisor = fields.number("query_pre_attn_scalar", 256.0, above=0.0) ** 0.5
    score_cap, logit_cap = (
        _read_cap(fields, name, absent if second else None)
        for name, absent in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0))
    )
    if not second and score_cap is not None:
        fields.problem("config.json has attn_logit_softcapping, which this family's own code leaves out.")
    if second:
        rotaries = [read_rotary(shared.read_rope(fields), sizes.head_width, sizes.context, fields)]
        rotary_of_layer = None
    else:
        theta = {"full_attention": fields.take("rope_theta"), "sliding_attention": fields.take("rope_local_base_freq")}
        by_kind = shared.read_rope_by_kind(fields, theta)
        absent = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}
        rotaries = [
            read_rotary(by_kind[kind], sizes.head_width, sizes.context, fields, theta=absent[kind]) for kind in _KINDS
        ]
        rotary_of_layer = [_KINDS.index(kind) for kind in types]
    return shared.make_config(
        family,
        sizes,
        fields,
        rotaries=rotaries,
        rotary_of_layer=rotary_of_layer or (),
        limits={"an attention window": window if "sliding_attention" in types else None},
        norm_epsilon=fields.number("rms_norm_eps", 1e-6, above=0.0),
        gain_offset=1.0,
        biases=("query", "key", "value", "output") if fields.flag("attention_bias", False) else (),
        qk_norm="none" if second else "head",
        activation=fields.one_of("hidden_activation", shared.ACTIVATIONS, "gelu_tanh"),
        score_divisors=(divisor,) * sizes.layers,
        score_cap=score_cap,
        logit_cap=logit_cap,
        embedding_scale=sizes.width**0.5,
        tied=fields.flag("tie_word_embeddings", True),
        initializer_range=shared.read_initializer(fields),
    )


def _read_cap(fields: Fields, name: str, absent: float | None) -> float | None:
    return fields.number(name, None if fields.has(name) else absent, above=0.0)


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """Every parameter of the model."""
    return (
        shared.around_blocks(config)
        | shared.norm("attention_norm", config)
        | shared.attention(config)
        | shared.norm("attention_out_norm", config)
        | shared.norm("mlp_norm", config)
        | shared.mlp(config)
        | shared.norm("mlp_out_norm", config)
    )


_BLOCK = llama.BLOCK | {
    "attention_out_norm": ("post_attention_layernorm", ("D",)),
    "mlp_norm": ("pre_feedforward_layernorm", ("D",)),
    "mlp_out_norm": ("post_feedforward_layernorm", ("D",)),
}


def tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a Hugging Face checkpoint."""
    found = shared.decoder_tensors("embed_tokens", "norm", _BLOCK, "layers.{}.")
    return shared.only_existing(found, parameters(config))


# ---- GGUF ---------------------------------------------------------------------------------------------------------

# Layers of the sizes (27B both) whose scores are divided by what each head has of the width, not by its own.
_LARGEST = {"gemma2": 46, "gemma3": 62}


def read_gguf(architecture: str, keys: Fields, shapes: llamacpp.Shapes, rope: llamacpp.RopeTensors) -> ModelConfig:
    """The configuration in a GGUF file's metadata.

    What scores are divided by has no key: as llama.cpp, by the published sizes.
    """
    second = architecture == "gemma2"
    sizes = llamacpp.read_sizes(keys, shapes)
    window, sliding = llamacpp.read_windows(keys, sizes.layers, 2 if second else 6, 4096 if second else None)
    rotaries, rotary_of_layer = llamacpp.read_rotaries(keys, sizes, sliding, None if second else 10_000.0)
    largest = sizes.layers == _LARGEST[architecture]
    divisor = (sizes.width // sizes.heads if largest else sizes.head_width) ** 0.5
    return shared.make_config(
        "gemma2" if second else "gemma3_text",
        sizes,
        keys,
        rotaries=rotaries,
        rotary_of_layer=rotary_of_layer,
        limits={"an attention window": window},
        norm_epsilon=keys.number("attention.layer_norm_rms_epsilon", above=0.0),
        gain_offset=1.0,
        qk_norm="none" if second else "head",
        activation="gelu_tanh",
        score_divisors=(divisor,) * sizes.layers,
        score_cap=keys.number("attn_logit_softcapping", 50.0, above=0.0) if second else None,
        logit_cap=keys.number("final_logit_softcapping", 30.0 if second else None, above=0.0),
        embedding_scale=sizes.width**0.5,
        **llamacpp.constants(sizes, shapes),
    )


def gguf_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a GGUF file, whose gains are the whole ones."""
    known = parameters(config)
    found = llamacpp.tensors(config, known)
    return {
        name: tensor._replace(offset=-config.gain_offset) if known[name].kind == "gain" else tensor
        for name, tensor in found.items()
    }
