"""What a family file has to say, and the pieces that most of them share.

A family is one file with

- ``MODEL_TYPES``: what config.json calls it, and ``GGUF``: what GGUF files call it (empty where they are not read);
- ``read_config(fields)`` and ``read_gguf(...)`` -> `ModelConfig`: they take what they know, the rest is refused;
- ``parameters(config)``: name -> `Parameter`. Which of them exist *is* the architecture: shapes, shardings, loading,
  the choice of a mesh, the parameter count and the cost all come from here;
- ``tensors(config)`` and ``gguf_tensors(config)``: name -> `Tensor`, where each lies in a checkpoint;
- ``PREFIXES``: what may stand before the names of tensors, ``HEADS``: what the output head may be called, and
  ``NOT_READ``: a pattern of tensors without effect.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families.fields import MOST, NEEDED, Fields
from jaxprobe.models.rope import Rotary


class Parameter(NamedTuple):
    """One parameter: a letter for each axis (L first where every block has its own), and how it starts."""

    axes: str
    kind: Literal["matrix", "gain", "bias"]
    spread: float = 1.0  # of a matrix before training, times the config's

    @property
    def in_block(self) -> bool:
        return self.axes[0] == "L"

    @property
    def per_kv_head(self) -> bool:
        """Whether it is held once for each copy of a key/value head."""
        return "K" in self.axes and "G" not in self.axes


class Tensor(NamedTuple):
    """Where one parameter lies in a checkpoint, or which part of a fused tensor it is."""

    name: str  # ``{}`` stands for the layer
    dims: tuple[str, ...]  # the file's dimensions, each a group of our letters, slowest first
    beside: tuple[str, ...] = ()  # groups that lie one after the other along the dimension that is one of them, or
    # where that dimension has a ``*``, alternate there
    at: int = 0  # which of ``beside`` this parameter is
    head_order: tuple[int, ...] = ()  # our dimensions of a head, by their place in the file
    offset: float = 0.0  # added to the file's numbers


class Family(Protocol):
    """A family file, as the rest of the package sees it."""

    MODEL_TYPES: tuple[str, ...]
    GGUF: tuple[str, ...]
    PREFIXES: tuple[str, ...]
    HEADS: tuple[str, ...]
    NOT_READ: str

    def read_config(self, fields: Fields) -> ModelConfig: ...
    def parameters(self, config: ModelConfig) -> dict[str, Parameter]: ...
    def tensors(self, config: ModelConfig) -> dict[str, Tensor]: ...
    def gguf_tensors(self, config: ModelConfig) -> dict[str, Tensor]: ...  # where there are names in GGUF


# ---- Parameters ---------------------------------------------------------------------------------------------------

# product -> (axes, axes of its bias)
_ATTENTION = {
    "query": ("LDKGH", "LKGH"),
    "key": ("LDKH", "LKH"),
    "value": ("LDKH", "LKH"),
    "output": ("LKGHD", "LD"),
}
_MLP = {"gate": ("LDF", "LF"), "up": ("LDF", "LF"), "down": ("LFD", "LD")}


def norm(name: str, config: ModelConfig, axes: str = "LD") -> dict[str, Parameter]:
    """A norm's gain, and for a layer norm its bias."""
    bias = {f"{name}_bias": Parameter(axes, "bias")} if config.norm == "layer" else {}
    return {name: Parameter(axes, "gain")} | bias


def attention(config: ModelConfig, spread: Mapping[str, float] | None = None) -> dict[str, Parameter]:
    """Query, key, value and output, with the biases and the norms of queries and keys that the config names."""
    gains = {"none": (), "head": ("LH", "LH"), "width": ("LKGH", "LKH")}[config.qk_norm]
    norms = {name: Parameter(axes, "gain") for name, axes in zip(("query_norm", "key_norm"), gains, strict=False)}
    return _products(config, _ATTENTION, spread or {}) | norms


def mlp(config: ModelConfig, spread: Mapping[str, float] | None = None) -> dict[str, Parameter]:
    """Gate, up and down, or without a gate up and down, with the biases that the config names."""
    return _products(config, _MLP if config.gated else {"up": _MLP["up"], "down": _MLP["down"]}, spread or {})


def _products(
    config: ModelConfig, axes: Mapping[str, tuple[str, str]], spread: Mapping[str, float]
) -> dict[str, Parameter]:
    found = {}
    for name, (of_matrix, of_bias) in axes.items():
        found[name] = Parameter(of_matrix, "matrix", spread.get(name, 1.0))
        if name in config.biases:
            found[f"{name}_bias"] = Parameter(of_bias, "bias")
    return found


def around_blocks(config: ModelConfig) -> dict[str, Parameter]:
    """Embedding, position table, final norm, and the output head where it is asked for and not the embedding."""
    found = {"embedding": Parameter("VD", "matrix")}
    if config.positions:
        found["positions"] = Parameter("PD", "matrix")
    found |= norm("final_norm", config, "D")
    if config.head and not config.tied:
        found["head"] = Parameter("VD", "matrix")
    return found


def decoder_tensors(
    embedding: str, final_norm: str, blocks: Mapping[str, tuple[str, tuple[str, ...]]], start: str
) -> dict[str, Tensor]:
    """A table of plain tensors: each product and norm with the bias that it may have.

    Args:
      embedding, final_norm: their names.
      blocks: parameter -> (name within the block, dimensions).
      start: what the names of a block begin with, ``{}`` for the layer.
    """
    found = {
        "embedding": Tensor(f"{embedding}.weight", ("V", "D")),
        "final_norm": Tensor(f"{final_norm}.weight", ("D",)),
        "final_norm_bias": Tensor(f"{final_norm}.bias", ("D",)),
        "head": Tensor("", ("V", "D")),  # which is found by `HEADS`
    }
    for name, (theirs, dims) in blocks.items():
        found[name] = Tensor(f"{start}{theirs}.weight", dims)
        found[f"{name}_bias"] = Tensor(f"{start}{theirs}.bias", dims[:1])
    return found


def turned(tensors: dict[str, Tensor], order: tuple[int, ...]) -> dict[str, Tensor]:
    """The table with queries and keys, their biases and gains in another order of a head's dimensions."""
    names = ("query", "query_bias", "query_norm", "key", "key_bias", "key_norm")
    return tensors | {name: tensors[name]._replace(head_order=order) for name in names if order and name in tensors}


def pre_norm(config: ModelConfig, spread: Mapping[str, float] | None = None) -> dict[str, Parameter]:
    """Every parameter of a model whose blocks are a norm and attention, then a norm and an MLP.

    Args:
      spread: product -> of its matrix before training, times the config's.
    """
    return (
        around_blocks(config)
        | norm("attention_norm", config)
        | attention(config, spread)
        | norm("mlp_norm", config)
        | mlp(config, spread)
    )


def only_existing(tensors: dict[str, Tensor], parameters: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """Of a table with every tensor that a family may have those whose parameters this model has."""
    return {name: tensors[name] for name in parameters}


# ---- Configurations -----------------------------------------------------------------------------------------------

# Fields that don't change a hidden state in a forward pass: of training, of generation, and of the files themselves.
WITHOUT_EFFECT = frozenset({
    "architectures", "attention_dropout", "auto_map", "bos_token_id", "dtype", "eos_token_id",
    "is_decoder", "is_llama_config", "model_type", "pad_token_id", "pretraining_tp", "sep_token_id", "tokenizer_class",
    "torch_dtype", "transformers.js_config", "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",
    "_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "attn_implementation",
    "output_attentions", "output_hidden_states", "return_dict", "cache_implementation", "use_return_dict",
    "attn_pdrop", "embd_pdrop", "resid_pdrop", "hidden_dropout", "classifier_dropout", "embedding_dropout",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "gradient_checkpointing", "torchscript", "problem_type",
    "id2label", "label2id", "num_labels", "task_specific_params", "finetuning_task",
    "language", "license", "_commit_hash",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "prefix", "generation_config",
    "chunk_size_feed_forward", "use_bfloat16", "tf_legacy_loss", "decoder_start_token_id", "initializer_factor",
})  # fmt: skip


class Sizes(NamedTuple):
    """What every decoder has, under Hugging Face's names."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int
    context: int


def read_sizes(
    fields: Fields,
    *,
    context: int,
    kv_heads: int | None = None,
    head_width: int | None = None,
    **absent: int,
) -> Sizes:
    """Sizes out of a config.json.

    Args:
      context: ``max_position_embeddings`` where the field is absent, as the family's class has it.
      kv_heads: ``num_key_value_heads`` where the field is absent; None, or where it is null: as many as query heads.
      head_width: ``head_dim`` where the field is absent; None: the width over the heads.
      absent: the other sizes where their fields are; by default they must be there.
    """
    width = fields.integer("hidden_size", absent.get("width", NEEDED))
    heads = fields.integer("num_attention_heads", absent.get("heads", NEEDED), most=2**16)
    grouped = heads if fields.has("num_key_value_heads") else kv_heads or heads
    return Sizes(
        layers=fields.integer("num_hidden_layers", absent.get("layers", NEEDED), most=MOST["layers"]),
        width=width,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", grouped, most=2**16),
        head_width=fields.integer("head_dim", head_width or max(width // heads, 1), most=2**16),
        mlp_width=fields.integer("intermediate_size", absent.get("mlp_width", NEEDED)),
        vocabulary=fields.integer("vocab_size", absent.get("vocabulary", NEEDED)),
        context=fields.integer("max_position_embeddings", context, most=MOST["context"]),
    )


def read_rope(fields: Fields) -> dict[str, Any]:
    """Rope settings of three generations of files: ``rope_theta`` and ``rope_scaling``, or ``rope_parameters``."""
    parameters, scaling = fields.mapping("rope_parameters"), fields.mapping("rope_scaling")
    outside = {name: fields.take(name) for name in ("rope_theta", "partial_rotary_factor")}
    # Where both are there, transformers 5 takes the older field whole.
    return outside | (scaling or parameters or {})


def read_rope_by_kind(fields: Fields, theta: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rope settings of full and of sliding layers; scaling in an older file is of full layers.

    Args:
      theta: kind of layer -> ``rope_theta`` where its settings have none.
    """
    parameters, scaling = fields.mapping("rope_parameters") or {}, fields.mapping("rope_scaling") or {}
    found = {}
    for kind in ("full_attention", "sliding_attention"):
        own = parameters.pop(kind, None) or {}
        if not isinstance(own, dict):
            fields.problem(f"{fields.source} has rope_parameters of {kind} that are no dictionary.")
            own = {}
        scaled = scaling if kind == "full_attention" else {}
        found[kind] = {"rope_theta": theta.get(kind)} | own | scaled
    for name in parameters:
        fields.problem(f"{fields.source} has {fields.shown(name)} in rope_parameters; layers of two kinds are needed.")
    return found


def read_window(fields: Fields, absent: int | None, name: str = "sliding_window") -> int | None:
    """Tokens of an attention window, the token itself included; null is none, no field is ``absent``."""
    return fields.integer(name, None if fields.has(name) else absent, most=MOST["context"])


def read_layer_types(fields: Fields, layers: int, is_sliding: Callable[[int], bool]) -> list[str]:
    """For each layer ``sliding_attention`` or ``full_attention``: as listed, or by the family's rule."""
    by_rule = ["sliding_attention" if is_sliding(layer) else "full_attention" for layer in range(layers)]
    return fields.words("layer_types", ("sliding_attention", "full_attention"), layers) or by_rule


def make_config(
    family: str,
    sizes: Sizes,
    fields: Fields,
    *,
    rotaries: Sequence[Rotary],
    norm_epsilon: float,
    rotary_of_layer: Sequence[int] = (),
    limits: Mapping[str, int | None] | None = None,
    score_divisors: Sequence[float] = (),
    **constants: Any,
) -> ModelConfig:
    """A configuration with Llama's constants where the family does not say otherwise.

    Args:
      limits: what beside the context bounds a prompt -> its tokens, or None.
      score_divisors: default: the square root of a head's width.
    """
    if sizes.heads % sizes.kv_heads:
        fields.problem(f"{sizes.heads} query heads do not divide over {sizes.kv_heads} key/value heads.")
    bounds = {"the context": sizes.context} | {name: size for name, size in (limits or {}).items() if size}
    reason = min(bounds, key=bounds.__getitem__)
    llama = {
        "positions": 0, "norm": "rms", "gain_offset": 0.0, "biases": (), "qk_norm": "none", "activation": "silu",
        "gated": True, "parallel": False, "score_cap": None, "embedding_scale": 1.0, "tied": False, "logit_cap": None,
    }  # fmt: skip
    return ModelConfig(
        family=family,
        layers=sizes.layers,
        width=sizes.width,
        kv_heads=sizes.kv_heads,
        queries_per_kv=max(sizes.heads // sizes.kv_heads, 1),
        head_width=sizes.head_width,
        mlp_width=sizes.mlp_width,
        vocabulary=sizes.vocabulary,
        context=sizes.context,
        longest_prompt=bounds[reason],
        longest_because=reason,
        norm_epsilon=norm_epsilon,
        rotaries=tuple(rotaries),
        rotary_of_layer=tuple(rotary_of_layer) or (0,) * sizes.layers,
        score_divisors=tuple(score_divisors) or (sizes.head_width**0.5,) * sizes.layers,
        **(llama | constants),
    )


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def read_initializer(fields: Fields, default: float = 0.02) -> float:
    """The standard deviation of matrices before training."""
    return fields.number("initializer_range", default, above=0.0, most=1e3)
