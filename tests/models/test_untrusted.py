"""A checkpoint is somebody else's file: whatever is in it, reading it ends in a model or in words, at once."""

import contextlib
import json
import time

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxprobe.errors import InputError
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families.known import FAMILIES, parameters, read_config, read_gguf
from jaxprobe.models.files import digest
from jaxprobe.models.files.digest import weights_digest
from jaxprobe.models.files.open import open_checkpoint
from jaxprobe.models.files.safetensors import folder_config
from jaxprobe.models.files.source import find_model
from jaxprobe.models.load import open_model
from tests.models.test_config import BASE
from tests.tiny_llama import save_llama

CONFIGS = [
    ("null", "config.json holds None; a dictionary"),
    ("[]", r"config.json holds \[\]; a dictionary"),
    ('"llama"', "config.json holds 'llama'; a dictionary"),
    ("[" * 100_000, "can't be read as JSON"),
    ('{"a":' * 100_000, "can't be read as JSON"),
    ("9" * 5000, "can't be read as JSON|holds"),
    ('{"model_type": ["llama"]}', "model_type is"),
    ({"num_hidden_layers": "3"}, "num_hidden_layers='3'; a whole number from 1 to 4096"),
    ({"num_hidden_layers": 3.0}, "num_hidden_layers=3.0; a whole number"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; a whole number from 1 to 4096"),
    ({"num_hidden_layers": -1}, "num_hidden_layers=-1; a whole number"),
    ({"num_hidden_layers": True}, "num_hidden_layers=True; a whole number"),
    ({"hidden_size": 10**30}, "hidden_size=1000.*; a whole number"),
    ({"num_attention_heads": 0}, "num_attention_heads=0; a whole number"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5'; a number above 0"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan; a number above 0"),
    ({"rope_scaling": "linear"}, "rope_scaling='linear'; a dictionary"),
    ({"rope_scaling": {"type": ["linear"]}}, "Rope type"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor='2'; a number above 0"),
    ({"rope_theta": 10**400}, "rope_theta=1000.*; a number above 1"),
    ({"head_dim": 7}, "7 of 7 dimensions of a head; both must be even"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false'; true or false"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.* has quant_method='gptq'; only 'fp8'"),
    ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}, r"only \[128, 128\] is impl"),
    ({"quantization_config": {"quant_method": "fp8", "bits": 8}}, "bits=8, a field that is not understood"),
    ({"quantization_config": "fp8"}, "quantization_config='fp8'; a dictionary"),
    ({"x" * 10_000: 1}, "a field that is not understood"),
    ({"strange": "y" * 10_000}, "strange='yyy.*a field that is not understood"),
]


@pytest.mark.parametrize(("content", "message"), CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_that_is_none(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(BASE | content))
    started = time.perf_counter()
    with pytest.raises(InputError, match=message) as error:
        folder_config(tmp_path)
    assert time.perf_counter() - started < 1
    assert all(len(problem) < 1000 for problem in error.value.problems)


LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
                 st.sampled_from([0, 1, 2, 7, 64, 10**9, 0.5, "default", "linear", "llama3", "yarn", "longrope", "silu",
                                  "gelu_pytorch_tanh", "sliding_attention", "full_attention"]))  # fmt: skip
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner,
                     max_size=4), max_leaves=8)  # fmt: skip
ROPE = st.dictionaries(
    st.sampled_from(["rope_type", "type", "rope_theta", "factor", "partial_rotary_factor", "low_freq_factor",
                     "high_freq_factor", "original_max_position_embeddings", "short_factor", "long_factor",
                     "attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate",
                     "full_attention", "sliding_attention"]), VALUE, max_size=5)  # fmt: skip
NAMES = [*BASE, "head_dim", "rope_theta", "tie_word_embeddings", "attention_bias", "sliding_window", "layer_types",
         "use_sliding_window", "max_window_layers", "partial_rotary_factor", "rotary_pct", "rotary_emb_base",
         "use_parallel_residual", "hidden_act", "hidden_activation", "query_pre_attn_scalar", "text_config",
         "attn_logit_softcapping", "final_logit_softcapping", "sliding_window_pattern", "rope_local_base_freq",
         "original_max_position_embeddings", "n_embd", "n_head", "n_layer", "n_positions", "n_inner",
         "initializer_range", "layer_norm_eps", "scale_attn_by_inverse_layer_idx"]  # fmt: skip


@pytest.mark.slow
@settings(max_examples=600, deadline=2000, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([name for family in FAMILIES for name in family.MODEL_TYPES]),
    st.dictionaries(st.sampled_from(NAMES), VALUE, max_size=4),
    st.none() | ROPE,
    st.none() | ROPE,
)
def test_any_config_is_a_model_or_is_refused(model_type, changes, parameters_of_rope, scaling):
    fields = BASE | {"rope_parameters": parameters_of_rope, "rope_scaling": scaling} | changes
    try:
        config = read_config(fields | {"model_type": model_type})
    except InputError as error:
        assert all(len(problem) < 2000 for problem in error.problems)
        return
    assert isinstance(config, ModelConfig) and all(config.sizes()[letter] > 0 for letter in "LDKGHFV")
    assert parameters(config) and json.dumps(config.constants(), allow_nan=False) and config.parameter_count() > 0


@settings(max_examples=100, deadline=2000, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([name for family in FAMILIES for name in family.GGUF]),
    st.dictionaries(st.sampled_from([
        "block_count", "embedding_length", "attention.head_count", "rope.freq_base", "rope.scaling.type",
        "context_length", "rope.scaling.factor", "feed_forward_length", "rope.dimension_count", "rope.freq_base_swa",
        "attention.sliding_window", "attention.sliding_window_pattern", "attn_logit_softcapping",
    ]), VALUE),
)  # fmt: skip
def test_any_gguf_metadata_are_a_model_or_are_refused(architecture, keys):
    metadata = {f"{architecture}.{name}": value for name, value in keys.items()}
    with contextlib.suppress(InputError):
        read_gguf({"general.architecture": architecture} | metadata, {"token_embd.weight": (128, 64)})


def index(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / "model.safetensors.index.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("null", "no 'weight_map'"),
        ("{}", "no 'weight_map'"),
        ({"weight_map": {}}, "no 'weight_map'"),
        ({"weight_map": ["a"]}, "no 'weight_map'"),
        ({"weight_map": {"a": 3}}, "names 3 as a file of weights"),
        ({"weight_map": {"a": "../evil.safetensors"}}, "names '../evil.safetensors' as a file of weights"),
        ({"weight_map": {"a": "/etc/passwd"}}, "names '/etc/passwd' as a file of weights"),
        ({"weight_map": {"a": "a\\..\\b"}}, "as a file of weights; only files beside it are read"),
        ({"weight_map": {"a": ".."}}, "names '..' as a file of weights"),
        ({"weight_map": {"a": "gone.safetensors"}}, "lacks gone.safetensors"),
    ],
)
def test_an_index_may_name_files_beside_it_only(tmp_path, content, message):
    (tmp_path.parent / "evil.safetensors").write_bytes(b"")
    index(tmp_path, content)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "header",
    ["[]", "null", "{}x", '{"a": 3}', '{"a": {"dtype": "F32"}}', '{"a": {"dtype": 3, "shape": 4, "data_offsets": []}}',
     '{"a": {"dtype": "F32", "shape": [1e9], "data_offsets": [0, 4]}}'],
)  # fmt: skip
def test_a_header_that_is_none(tmp_path, header):
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    text = header.encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    with pytest.raises(InputError, match="can't be read"):
        open_checkpoint(tmp_path)


def test_more_layers_than_the_file_has_are_named_at_once(tmp_path):
    save_llama(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 4000}))
    started = time.perf_counter()
    with pytest.raises(InputError, match="Tensor model.layers.3.* is missing"):
        open_model(str(tmp_path))
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("name", ["no such/model", "here/nope", "owner/weights.gguf", "a/b/c", "nope", "-x/y"])
def test_a_path_that_is_not_there_is_not_looked_for_on_a_hub(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    started = time.perf_counter()
    with pytest.raises(InputError, match="No model at"):
        find_model(name)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("online", [False, True])
def test_without_a_network_a_hub_model_is_not_waited_for(monkeypatch, online):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://127.0.0.1:9")
    started = time.perf_counter()
    with pytest.raises(InputError, match="not in the local cache, and the hub can't be reached"):
        find_model("someone/some-model-that-is-not-cached")
    assert time.perf_counter() - started < 5


# ---- Digests --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sampled(monkeypatch):
    """As if every checkpoint were large: of tensors over 4 kB a few blocks are read."""
    monkeypatch.setattr(digest, "WHOLE_CHECKPOINT", 0)
    monkeypatch.setattr(digest, "WHOLE_TENSOR", 2**12)
    monkeypatch.setattr(digest, "BLOCK", 2**8)
    monkeypatch.setattr(digest, "BLOCKS", 8)


def rewrite(folder, change):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return weights_digest(open_checkpoint(folder))


def test_every_tensor_that_differs_is_seen_in_a_sampled_digest(tmp_path, sampled):
    """Each of them alone: the former digest of a large file looked at places of the file, and missed whole tensors."""
    save_llama(tmp_path)
    seen = {rewrite(tmp_path, lambda tensors: None)}
    names = list(open_checkpoint(tmp_path).shapes())
    for number, name in enumerate(names):
        seen.add(
            rewrite(tmp_path, lambda tensors, name=name: tensors.update({name: tensors[name] * np.float32(1.001)}))
        )
        assert len(seen) == number + 2, name


def test_names_and_shapes_count_in_a_digest(tmp_path, sampled):
    save_llama(tmp_path)
    q, k = (f"model.layers.0.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm"))
    plain = rewrite(tmp_path, lambda tensors: None)
    exchanged = rewrite(tmp_path, lambda tensors: tensors.update({q: tensors[k], k: tensors[q]}))
    gate = "model.layers.0.mlp.gate_proj.weight"
    reshaped = rewrite(tmp_path, lambda tensors: tensors.update({gate: tensors[gate].reshape(64, 128)}))
    assert len({plain, exchanged, reshaped}) == 3


def test_one_number_counts_in_a_checkpoint_of_up_to_two_gigabytes(tmp_path):
    save_llama(tmp_path)
    name = "model.layers.1.self_attn.k_proj.weight"

    def change(tensors):
        tensors[name][17, 23] += 1e-3

    assert rewrite(tmp_path, lambda tensors: None) != rewrite(tmp_path, change)
