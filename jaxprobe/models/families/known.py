"""Every family there is, by the names that files have for it: the one place that lists them."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from jaxprobe.errors import InputError
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families import gemma, gpt2, llama, neox, olmo, phi
from jaxprobe.models.families.family import WITHOUT_EFFECT, Family, Parameter
from jaxprobe.models.families.fields import Fields

FAMILIES: tuple[ModuleType, ...] = (llama, neox, gemma, olmo, phi, gpt2)
# Model types that are asked for, and what a forward of theirs would need that this one has not.
_MISSING = {
    "a mixture of experts": ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "deepseek_v2", "deepseek_v3",
                           "llama4", "llama4_text", "dbrx", "jetmoe", "granitemoe", "glm4_moe", "ernie4_5_moe"),
    "attention sinks and a mixture of experts": ("gpt_oss",),
    "recurrent layers": ("mamba", "mamba2", "falcon_mamba", "rwkv", "recurrent_gemma", "jamba", "bamba", "zamba",
                         "zamba2", "qwen3_next", "qwen3_5", "granitemoehybrid", "falcon_h1", "nemotron_h", "lfm2"),
    "embeddings of their own in every layer": ("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"),
    "positions as a bias of scores (ALiBi)": ("bloom", "mpt"),
    "an encoder beside the decoder": ("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "whisper", "t5gemma"),
    "an encoder's attention in both directions": ("bert", "roberta", "modernbert", "deberta-v2", "electra"),
}  # fmt: skip
# Rows and columns of a block that has one scale, in checkpoints in 8 bits.
FP8_BLOCK = 128
_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.MODEL_TYPES}
_BY_GGUF = {name: family for family in FAMILIES for name in family.GGUF}


def family_of(config: ModelConfig) -> Family:
    """The family that a configuration was read by."""
    return _BY_TYPE[config.family]


def parameters(config: ModelConfig) -> dict[str, Parameter]:
    """Every parameter of a model: name -> its axes and how it starts."""
    return family_of(config).parameters(config)


def read_config(fields: Any) -> ModelConfig:
    """The configuration in a config.json.

    Args:
      fields: as JSON has them, from whoever wrote the file.

    Raises:
      InputError: a model of another type, a missing field, or one that is not understood; every such field is named.
    """
    if not isinstance(fields, dict):
        raise InputError(f"config.json holds {Fields.shown(fields)}; a dictionary of fields is needed.")
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in _BY_TYPE:
        raise InputError(
            f"model_type is {Fields.shown(model_type)}{_needs(model_type)}; models of type "
            f"{', '.join(map(repr, _BY_TYPE))} can be read."
        )
    rest = Fields(fields)
    _read_quantization(rest)
    rest.only("is_encoder_decoder", False)
    rest.only("add_cross_attention", False)
    config = _BY_TYPE[model_type].read_config(rest)
    rest.without_effect(WITHOUT_EFFECT)
    rest.refuse_the_rest()
    if rest.problems:
        raise InputError(*rest.problems)
    return config


def _read_quantization(fields: Fields) -> None:
    """Takes a ``quantization_config`` whose weights can be expanded: 8-bit floats with a scale for each block.

    What it says of activations is how they may be rounded on the way; here they are not.
    """
    quantised = fields.mapping("quantization_config")
    if quantised is None:
        return
    inner = Fields(quantised, "quantization_config of config.json", fields.problems)
    inner.only("quant_method", "fp8")
    inner.only("fmt", "e4m3")
    inner.only("weight_block_size", [FP8_BLOCK, FP8_BLOCK])
    inner.without_effect({"activation_scheme", "modules_to_not_convert", "ignored_layers", "dequantize"})
    inner.refuse_the_rest()


def _needs(name: Any) -> str:
    """What a model of this type, or of this architecture of GGUF files, would need; nothing where that is unknown."""
    plain = lambda name: str(name).replace("-", "").replace("_", "")
    found = next((what for what, types in _MISSING.items() if plain(name) in map(plain, types)), None)
    return f", which needs {found}" if found else ""


def read_gguf(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], rope: Mapping[str, np.ndarray] | None = None
) -> ModelConfig:
    """The configuration in a GGUF file's metadata.

    Args:
      metadata: key -> value of the file.
      shapes: of its tensors.
      rope: its tensors of rope, such as ``rope_freqs.weight``: name -> numbers.

    Raises:
      InputError: another architecture, a missing key, or a key that is not understood; every such key is named.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _BY_GGUF:
        raise InputError(
            f"GGUF architecture is {Fields.shown(architecture)}{_needs(architecture)}; "
            f"{', '.join(map(repr, _BY_GGUF))} can be read."
        )
    if "token_embd.weight" not in shapes:
        raise InputError("The GGUF file has no tensor token_embd.weight. It is not complete.")
    start = f"{architecture}."
    found = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
    keys = Fields(found, "GGUF metadata", start=start)
    config = _BY_GGUF[architecture].read_gguf(architecture, keys, shapes, rope or {})
    keys.refuse_the_rest()
    if keys.problems:
        raise InputError(*keys.problems)
    return config
