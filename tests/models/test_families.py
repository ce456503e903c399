"""Every family against transformers in float64: tiny random models, every parameter noised, in several variants."""

import gguf
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from jaxprobe.errors import InputError
from jaxprobe.mesh import make_mesh, parse_mesh
from jaxprobe.models.families.known import FAMILIES, read_config
from jaxprobe.models.files.open import open_checkpoint
from tests.extract.test_forward import load, ours, random_sequences
from tests.tiny_llama import assert_same_states
from tests.tiny_models import Variant, float64_throughout, read_back, save, states_of, true_states

GROUPED = {"num_key_value_heads": 4}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.2, 1.5],
    "long_factor": [2.0, 3.0, 4.0],
    "original_max_position_embeddings": 32,
}
HALF = {"hidden_size": 64}  # heads of 8 dimensions
NO_ROPE = {"rope_parameters": None}
NESTED = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
}
OLMO_NESTED = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
    "full_attention": YARN | {"rope_theta": 5e5},
}

VARIANTS = [
    Variant("llama", "grouped", GROUPED),
    Variant("llama", "biases, tied, wide heads", {"num_key_value_heads": 2, "head_dim": 8, "attention_bias": True,
            "mlp_bias": True, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    Variant("llama", "yarn", {**GROUPED, "rope_parameters": YARN}, HALF),
    Variant("mistral", "grouped, window", {**GROUPED, "sliding_window": 40}),
    Variant("mistral", "wide heads, no window", {"num_key_value_heads": 8, "head_dim": 12, "sliding_window": None}),
    Variant("mistral", "as published", {**GROUPED, "sliding_window": 4096}, {},
            {"rope_parameters": None, "rope_theta": 1e6, "sliding_window": 4096}),
    Variant("qwen2", "grouped", GROUPED),
    Variant("qwen2", "tied, yarn", {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_parameters": YARN},
            HALF),
    Variant("qwen2", "as published", {**GROUPED, "use_sliding_window": False}, {},
            {"rope_parameters": None, "rope_theta": 1e6, "sliding_window": 131072, "max_window_layers": 28,
             "layer_types": None}),
    Variant("qwen2", "window in later layers", {**GROUPED, "use_sliding_window": True, "sliding_window": 40,
            "max_window_layers": 2}),
    Variant("qwen3", "grouped, wide heads", {**GROUPED, "head_dim": 12}),
    Variant("qwen3", "biases, tied", {"num_key_value_heads": 8, "head_dim": 4, "attention_bias": True,
            "tie_word_embeddings": True}),
    Variant("qwen3", "head_dim absent", {**GROUPED, "head_dim": 128}, {}, {"head_dim": None}),
    Variant("gpt_neox", "parallel", {}, HALF),
    Variant("gpt_neox", "sequential, half of a head", {"use_parallel_residual": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e3, "partial_rotary_factor": 0.5}}, HALF),
    Variant("gpt_neox", "all of a head, tied, no biases", {"attention_bias": False, "tie_word_embeddings": True,
            "rope_parameters": LINEAR | {"partial_rotary_factor": 1.0}}, HALF),
    Variant("gpt_neox", "as published", {}, HALF, {"rope_parameters": None, "rotary_pct": 0.25,
            "rotary_emb_base": 10000}),
    Variant("gemma2", "grouped", {**GROUPED, "head_dim": 4, "query_pre_attn_scalar": 7, "sliding_window": 40}),
    Variant("gemma2", "strong caps", {"num_key_value_heads": 8, "head_dim": 12, "attn_logit_softcapping": 2.0}),
    Variant("gemma2", "no caps, untied, biases", {"num_key_value_heads": 1, "head_dim": 8,
            "attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False,
            "attention_bias": True}),
    Variant("gemma2", "as published", {**GROUPED, "head_dim": 256}, {}, {"rope_parameters": None, "rope_theta": 10000.0,
            "head_dim": None, "layer_types": None, "hidden_act": "gelu_pytorch_tanh",
            "cache_implementation": "hybrid"}),
    Variant("gemma3_text", "two rotaries", {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 7, "sliding_window": 40,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "rope_parameters": NESTED}),
    Variant("gemma3_text", "six to one", {"num_key_value_heads": 1, "head_dim": 12, "sliding_window": 40},
            {"num_hidden_layers": 7}),
    Variant("gemma3_text", "as published", {**GROUPED, "head_dim": 8}, {"num_hidden_layers": 7},
            {"rope_parameters": None, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None,
             "sliding_window_pattern": 6, "layer_types": None}),
    Variant("gemma3", "text_config", {**GROUPED, "head_dim": 8, "rope_parameters": NESTED,
            "layer_types": ["sliding_attention", "full_attention"] * 2}),
    Variant("olmo2", "grouped", GROUPED),
    Variant("olmo2", "biases, tied", {"attention_bias": True, "tie_word_embeddings": True, "rope_parameters": YARN},
            HALF),
    Variant("olmo3", "yarn on full layers", {**GROUPED, "sliding_window": 40, "rope_parameters": OLMO_NESTED}, HALF),
    Variant("olmo3", "as published", {"num_key_value_heads": 8}, HALF, {"rope_parameters": None, "rope_theta": 500000,
            "rope_scaling": {name: value for name, value in YARN.items() if name != "rope_theta"}}),
    Variant("phi3", "grouped", {**GROUPED, "sliding_window": 40}),
    Variant("phi3", "longrope on a part of a head", {"num_key_value_heads": 2, "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 32, "rope_parameters": LONGROPE}, HALF),
    Variant("phi3", "as published", {"num_key_value_heads": 8, "tie_word_embeddings": True}, {},
            {"rope_parameters": None, "rope_theta": 250000, "rope_scaling": None}),
    Variant("gpt2", "tied", {}),
    Variant("gpt2", "untied, by layer", {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True}),
    Variant("gpt2", "unscaled, relu of gelu", {"scale_attn_weights": False, "activation_function": "gelu"}),
]  # fmt: skip
ONE_EACH = list({variant.model_type: variant for variant in reversed(VARIANTS)}.values())
by_id = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.id)
one_each = pytest.mark.parametrize("variant", ONE_EACH, ids=lambda variant: variant.model_type)


SEQUENCES = random_sequences(24)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function that gives a variant's folder, written once with these options of `save`."""
    made = {}

    def folder(variant, **options):
        key = variant.id, *options.items()
        if key not in made:
            made[key] = tmp_path_factory.mktemp("model")
            save(variant, made[key], **options)
        return made[key]

    return folder


@pytest.fixture(scope="module")
def on_one_device(folders):
    """A function that gives the states of `SEQUENCES` from a variant's folder, computed once."""
    made = {}

    def states(variant):
        if variant.id not in made:
            made[variant.id] = ours(load(folders(variant)), SEQUENCES)
        return made[variant.id]

    return states


def test_every_type_has_variants():
    assert {variant.model_type for variant in VARIANTS} == {name for family in FAMILIES for name in family.MODEL_TYPES}


@pytest.mark.slow
@by_id
def test_states_are_those_of_transformers_in_float64(folders, on_one_device, variant):
    assert_same_states(on_one_device(variant), true_states(folders(variant), SEQUENCES))


@pytest.mark.slow
@one_each
def test_packed_equals_one_at_a_time(folders, on_one_device, variant):
    model = load(folders(variant))
    alone = [ours(model, [sequence]) for sequence in SEQUENCES[:8]]
    packed = {state: rows[:8] for state, rows in on_one_device(variant).items()}
    assert_same_states(packed, {s: np.concatenate([one[s] for one in alone]) for s in alone[0]})


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2,fsdp=2,model=2", "fsdp=2,model=4"])
@one_each
def test_eight_devices_give_the_states_of_one_from_sharded_files(folders, on_one_device, variant, mesh):
    sharded = folders(variant, max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    eight = load(sharded, make_mesh(parse_mesh(mesh)))
    assert_same_states(ours(eight, SEQUENCES), on_one_device(variant))


@pytest.mark.slow
@one_each
def test_bfloat16_is_no_further_from_float64_than_transformers(folders, variant):
    folder = folders(variant, dtype=torch.bfloat16)
    truth = true_states(folder, SEQUENCES)
    error = lambda found: {s: np.linalg.norm(found[s] - truth[s]) / np.linalg.norm(truth[s]) for s in truth}
    mine, theirs = (
        error(ours(load(folder, dtype="bfloat16"), SEQUENCES)),
        error(states_of(read_back(folder, torch.bfloat16), SEQUENCES)),
    )
    assert all(mine[state] <= 1.2 * theirs[state] + 1e-6 for state in truth), (mine, theirs)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "model."])
def test_a_text_model_is_found_inside_a_multimodal_file(folders, on_one_device, tmp_path, prefix):
    """Hub files of several generations put it at other places, beside a vision tower."""
    variant = next(variant for variant in ONE_EACH if variant.model_type == "gemma3")
    tensors = safetensors.numpy.load_file(folders(variant) / "model.safetensors")
    here = next(name for name in tensors if name.endswith("embed_tokens.weight")).removesuffix("embed_tokens.weight")
    tensors = {name.replace(here, prefix, 1) if name.startswith(here) else name: t for name, t in tensors.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folders(variant) / "config.json").read_text())
    assert_same_states(ours(load(tmp_path), SEQUENCES), on_one_device(variant))


WINDOWS = [
    ("mistral", {"sliding_window": 40}, 40),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 3}, 20),
    ("gemma2", {"sliding_window": 16}, 16),
    ("gemma3_text", {"sliding_window": 8}, 8),
    ("olmo3", {"sliding_window": 12}, 12),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "config", "longest"), WINDOWS, ids=[case[0] for case in WINDOWS])
def test_a_window_bounds_the_prompt(tmp_path, model_type, config, longest):
    save(Variant(model_type, "window", config | GROUPED), tmp_path)
    found = open_checkpoint(tmp_path).config()
    assert (found.longest_prompt, found.longest_because) == (longest, "an attention window")
    # As long as the window, transformers' own mask hides nothing.
    sequences = [list(np.random.default_rng(0).integers(2, 96, longest)) for _ in range(2)]
    assert_same_states(ours(load(tmp_path), sequences, slots=64), true_states(tmp_path, sequences))


REFUSED = {
    "mixtral": "which needs a mixture of experts",
    "gpt_oss": "which needs attention sinks and a mixture of experts",
    "mamba": "which needs recurrent layers",
    "gemma3n": "which needs embeddings of their own in every layer",
    "bloom": "which needs positions as a bias of scores",
    "t5": "which needs an encoder beside the decoder",
    "nothing": "models of type 'llama', 'mistral'",
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_other_architectures_are_refused_by_what_is_missing(model_type):
    with pytest.raises(InputError, match=f"model_type is '{model_type}'.*{REFUSED[model_type]}"):
        read_config({"model_type": model_type})


def write_gguf(path, model, architecture):
    """A GGUF file with the names that the gguf package has for this architecture; rows as they are."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if architecture == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    kind = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["qwen2 grouped", "qwen3 head_dim absent"])
def test_gguf_files_are_read_as_transformers_reads_them(folders, tmp_path, name):
    """Names by the gguf package's table; that rows lie as they are, transformers says, which reads the file itself."""
    variant = next(variant for variant in VARIANTS if variant.id == name)
    write_gguf(tmp_path / "tiny.gguf", read_back(folders(variant)), variant.model_type)
    dense = transformers.GgufConfig("tiny.gguf", dequantize=True)
    options = {"gguf_file": "tiny.gguf", "quantization_config": dense, "attn_implementation": "eager"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, **options).eval().double()
    with float64_throughout():
        truth = states_of(theirs, SEQUENCES)
    assert_same_states(ours(load(tmp_path / "tiny.gguf"), SEQUENCES), truth)
    assert_same_states(truth, true_states(folders(variant), SEQUENCES))
