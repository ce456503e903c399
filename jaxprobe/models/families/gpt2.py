"""GPT-2.

- pre-norm blocks with layer norms and biases on all products; every head has its own keys and values
- positions from a learned table, added to the embedding; nothing is rotated
- an MLP without a gate: ``down(gelu(up))``, gelu in its tanh form
- matrices lie in the file as [in, out]; query, key and value are fused, one after the other
- scores divided by the layer's number too, where the config says so
"""

from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families import family as shared
from jaxprobe.models.families import llamacpp
from jaxprobe.models.families.family import Parameter, Sizes, Tensor
from jaxprobe.models.families.fields import MOST, Fields

MODEL_TYPES = ("gpt2",)
GGUF = ("gpt2",)
PREFIXES = ("transformer.", "")  # the original file has none
HEADS = ("lm_head.weight",)
# Causal masks; the products' biases end otherwise.
NOT_READ = r"lm_head\.weight|.*\.attn\.(bias|masked_bias)" + llamacpp.NOT_READ


def read_config(fields: Fields) -> ModelConfig:
    """A config.json of any generation of transformers."""
    family = fields.take("model_type")
    width, heads = fields.integer("n_embd", 768), fields.integer("n_head", 12, most=2**16)
    context = fields.integer("n_positions", 1024)
    fields.take("n_ctx")
    sizes = Sizes(
        layers=fields.integer("n_layer", 12, most=MOST["layers"]),
        width=width,
        heads=heads,
        kv_heads=heads,
        head_width=max(width // heads, 1),
        mlp_width=fields.integer("n_inner", 4 * width),
        vocabulary=fields.integer("vocab_size", 50257),
        context=context,
    )
    if width % heads:
        fields.problem(f"n_embd={width} does not divide over n_head={heads}.")
    fields.take("reorder_and_upcast_attn")  # scores are float32 here anyway
    divisor = sizes.head_width**0.5 if fields.flag("scale_attn_weights", True) else 1.0
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx", False)
    return shared.make_config(
        family,
        sizes,
        fields,
        rotaries=(),
        positions=context,
        norm="layer",
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5, above=0.0),
        biases=("query", "key", "value", "output", "up", "down"),
        activation=fields.one_of("activation_function", shared.ACTIVATIONS, "gelu_tanh"),
        gated=False,
        score_divisors=[divisor * (layer + 1 if by_layer else 1) for layer in range(sizes.layers)],
        tied=fields.flag("tie_word_embeddings", True),
        initializer_range=shared.read_initializer(fields),
    )


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """Every parameter of the model; what is added to the stream starts smaller, by the number of such sums."""
    smaller = (2 * len(config.score_divisors)) ** -0.5
    return shared.pre_norm(config, {"output": smaller, "down": smaller})


_BLOCK = {
    "attention_norm": ("ln_1", ("D",), ("D",)),
    "output": ("attn.c_proj", ("KGH", "D"), ("D",)),
    "mlp_norm": ("ln_2", ("D",), ("D",)),
    "up": ("mlp.c_fc", ("D", "F"), ("F",)),
    "down": ("mlp.c_proj", ("F", "D"), ("D",)),
}


def tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a Hugging Face checkpoint."""
    found = shared.decoder_tensors("wte", "ln_f", {}, "") | {"positions": Tensor("wpe.weight", ("P", "D"))}
    for name, (theirs, dims, bias) in _BLOCK.items():
        found[name] = Tensor(f"h.{{}}.{theirs}.weight", dims)
        found[f"{name}_bias"] = Tensor(f"h.{{}}.{theirs}.bias", bias)
    fused = ("KGH", "KH", "KH")
    for at, name in enumerate(("query", "key", "value")):
        found[name] = Tensor("h.{}.attn.c_attn.weight", ("D", fused[at]), fused, at)
        found[f"{name}_bias"] = Tensor("h.{}.attn.c_attn.bias", (fused[at],), fused, at)
    return shared.only_existing(found, parameters(config))


# ---- GGUF ---------------------------------------------------------------------------------------------------------


def read_gguf(architecture: str, keys: Fields, shapes: llamacpp.Shapes, rope: llamacpp.RopeTensors) -> ModelConfig:
    """The configuration in a GGUF file's metadata; the activation and the scale, which have no key, as the class."""
    sizes = llamacpp.read_sizes(keys, shapes)
    return shared.make_config(
        architecture,
        sizes,
        keys,
        rotaries=(),
        positions=sizes.context,
        norm="layer",
        norm_epsilon=keys.number("attention.layer_norm_epsilon", above=0.0),
        biases=("query", "key", "value", "output", "up", "down"),
        activation="gelu_tanh",
        gated=False,
        **llamacpp.constants(sizes, shapes),
    )


def gguf_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Where each parameter lies in a GGUF file, whose matrices are [out, in]."""
    return llamacpp.tensors(config, parameters(config), fused=True)
