"""Configurations of both generations against transformers' own reading of them, and refusal by name."""

import json

import numpy as np
import pytest
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from jaxprobe.errors import InputError
from jaxprobe.models.families.known import read_config, read_gguf

BASE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES = [
    {},  # as Llama 2 was published
    {"rope_theta": 500_000.0, "rope_scaling": None},
    {"rope_theta": 1e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_theta": 1e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}},
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e5, **LLAMA3}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}, "rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0}, "rope_scaling": None},
]


@pytest.mark.parametrize("rope", ROPES)
def test_rope_frequencies_are_those_of_transformers(rope, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BASE | rope))
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig.from_pretrained(tmp_path)).inv_freq.numpy()
    ours = read_config(BASE | rope).rotaries[0].frequencies
    # Theirs are computed in float32.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_sizes():
    config = read_config(BASE)
    assert config.sizes() == {"L": 3, "D": 64, "K": 2, "G": 4, "H": 8, "F": 96, "V": 128, "P": 0}
    assert read_config(BASE | {"head_dim": 16}).head_width == 16
    without = {name: value for name, value in BASE.items() if name != "num_key_value_heads"}
    assert read_config(without).kv_heads == 8


def test_parameter_count_is_that_of_transformers(tmp_path):
    config = transformers.LlamaConfig(**{name: value for name, value in BASE.items() if name != "model_type"})
    model = transformers.LlamaModel(config)
    assert read_config(BASE).parameter_count() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
            "Rope type 'longrope' is not one of default, linear",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "Rope type 'linear' takes factor; found none"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "Rope type 'llama3' takes factor, low_freq_factor"),
        ({"attention_bias": "yes"}, "attention_bias='yes'; true or false is needed"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; only 'silu' can be run"),
        ({"sliding_window": 128}, "sliding_window=128, a field that is not understood"),
        ({"model_type": "mixtral"}, "model_type is 'mixtral'"),
        ({"hidden_size": None}, "config.json has no 'hidden_size'"),
        ({"num_key_value_heads": 3}, "8 query heads do not divide over 3"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        read_config(BASE | change)


def test_every_problem_is_named_at_once():
    with pytest.raises(InputError) as error:
        read_config(BASE | {"rope_interleaved": True, "sliding_window": 128})
    assert len(error.value.problems) == 2


SHAPES = {"token_embd.weight": (128, 64), "output.weight": (128, 64)}
GGUF = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 1e5,
}


def test_gguf_metadata_give_the_same_configuration():
    # GGUF has no field for the spread of weights before training.
    spread = {"initializer_range": 1 / 8}
    assert read_gguf(GGUF, SHAPES) == read_config(BASE | {"rope_theta": 1e5} | spread)
    linear = GGUF | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    scaling = {"rope_theta": 1e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert read_gguf(linear, SHAPES) == read_config(BASE | scaling | spread)


def test_gguf_stores_llama3_rope_as_divisors():
    plain = read_gguf(GGUF, SHAPES).rotaries[0].frequencies
    wanted = read_config(BASE | {"rope_theta": 1e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}})
    divisors = (np.array(plain) / np.array(wanted.rotaries[0].frequencies)).astype(np.float32)
    found = read_gguf(GGUF, SHAPES, {"rope_freqs.weight": divisors})
    np.testing.assert_allclose(found.rotaries[0].frequencies, wanted.rotaries[0].frequencies, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gemma"}, "architecture is 'gemma'"),
        ({"llama.rope.scaling.type": "longrope"}, "Rope type 'longrope'"),
        ({"llama.expert_count": 8}, "llama.expert_count=8, a field that is not understood"),
        ({"llama.rope.dimension_count": 4}, "Rope turns 4 of 8 dimensions of a head; all is implemented"),
    ],
)
def test_gguf_keys_that_are_not_understood_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        read_gguf(GGUF | change, SHAPES)
