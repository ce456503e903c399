"""GGUF files of every architecture that is read, against the model that they were made from, in float64.

Files are written as llama.cpp's converter writes them: names by the gguf package's own table, keys by its writer, and
the rows, gains and columns that it moves. Where transformers reads the architecture, it reads the same file.
"""

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf.quants import quantize

from jaxprobe.errors import InputError
from jaxprobe.mesh import make_mesh
from jaxprobe.models.families.known import read_gguf
from jaxprobe.models.files.open import open_checkpoint
from tests.extract.test_forward import load, ours, random_sequences
from tests.models.test_families import GROUPED, HALF, LONGROPE, NESTED, YARN
from tests.models.test_weights import permute
from tests.tiny_llama import assert_same_states
from tests.tiny_models import Variant, float64_throughout, read_back, save, states_of, true_states

# (architecture, model, whether transformers reads the file too). Gemma's files don't say what scores are divided by.
CASES = [
    ("llama", Variant("mistral", "grouped", {**GROUPED, "sliding_window": None}), True),
    ("llama", Variant("llama", "biases, yarn", {**GROUPED, "attention_bias": True, "rope_parameters": YARN}, HALF),
            False),
    ("gemma2", Variant("gemma2", "tied", {**GROUPED, "head_dim": 256, "sliding_window": 40}), True),
    ("gemma2", Variant("gemma2", "strong cap", {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 2.0}), False),
    ("gemma3", Variant("gemma3_text", "two rotaries", {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 40,
            "query_pre_attn_scalar": 8, "rope_parameters": NESTED}, {"num_hidden_layers": 7}), False),
    ("phi3", Variant("phi3", "grouped", {**GROUPED, "sliding_window": 40}), True),
    ("phi3", Variant("phi3", "longrope on a part of a head", {"num_key_value_heads": 2, "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 32, "rope_parameters": LONGROPE}, HALF), False),
    ("gpt2", Variant("gpt2", "tied", {"n_inner": 128}, {"max_position_embeddings": 1024}), True),
    ("gptneox", Variant("gpt_neox", "parallel", {}, HALF), False),
    ("gptneox", Variant("gpt_neox", "sequential, half of a head", {"use_parallel_residual": False, "rope_parameters":
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, HALF), False),
    ("olmo2", Variant("olmo2", "grouped", GROUPED), False),
    ("olmo2", Variant("olmo3", "yarn on full layers", {**GROUPED, "sliding_window": 40, "rope_parameters":
            {"sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
             "full_attention": YARN | {"rope_theta": 5e5, "attention_factor": 1.3}}}, HALF), False),
]  # fmt: skip
by_case = pytest.mark.parametrize(("architecture", "variant", "also"), CASES, ids=[case[1].id for case in CASES])


def write(path, model, architecture, kind=gguf.GGMLQuantizationType.F32):
    """A GGUF file of a model that transformers holds; its matrices in blocks of ``kind``."""
    writer = gguf.GGUFWriter(path, architecture)
    _write_keys(writer, model.config, architecture)
    config = model.config
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name in ("lm_head.weight", "embed_out.weight") and config.tie_word_embeddings:
            continue
        values = np.ascontiguousarray(_as_stored(name, tensor.numpy(), config, architecture))
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if values.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(stored, quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_keys(writer, config, architecture):
    """What the converter of each architecture writes."""
    heads, width = config.num_attention_heads, config.hidden_size
    writer.add_token_list([str(token) for token in range(config.vocab_size)])
    writer.add_pad_token_id(0)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config.n_inner if architecture == "gpt2" else config.intermediate_size)
    writer.add_head_count(heads)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    rope = config.rope_parameters
    if architecture == "gptneox":
        writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * (width // heads)))
        writer.add_parallel_residual(config.use_parallel_residual)
        writer.add_layer_norm_eps(config.layer_norm_eps)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(0)
    if architecture in ("gemma2", "gemma3"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":  # rope's base is left out
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        return
    if architecture == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        turned = int(rope.get("partial_rotary_factor", 1.0) * width) // heads
        writer.add_rope_dimension_count(turned)
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_sliding_window(config.sliding_window or 0)
        if "short_factor" in rope:
            long = config.original_max_position_embeddings
            factor = np.sqrt(1 + np.log(config.max_position_embeddings / long) / np.log(long))
            writer.add_rope_scaling_attn_factors(float(factor))
            for which in ("long", "short"):
                writer.add_tensor(f"rope_factors_{which}.weight", np.array(rope[f"{which}_factor"], np.float32))
        return
    if architecture == "olmo2" and getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    full = rope.get("full_attention", rope)
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    writer.add_rope_freq_base(full["rope_theta"])
    if full["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(full["rope_type"]))
        writer.add_rope_scaling_factor(full["factor"])
    if full["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    if full.get("attention_factor") is not None:
        writer.add_rope_scaling_yarn_attn_factor(full["attention_factor"])
    if architecture == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(width // heads)


def _as_stored(name, values, config, architecture):
    """A tensor's numbers as llama.cpp lays them."""
    heads = config.num_attention_heads
    if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
        return permute(values, heads if "q_proj" in name else config.num_key_value_heads)
    if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
        return values + np.float32(1)
    if architecture == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return values.T
    if architecture == "gptneox" and "query_key_value" in name:
        by_head = values.reshape(heads, 3, -1, *values.shape[1:])
        return np.concatenate([by_head[:, at].reshape(-1, *values.shape[1:]) for at in range(3)])
    return values


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A function that gives a case's folder: the model, and the GGUF file that was made from it."""
    made = {}

    def folder(architecture, variant):
        if variant.id not in made:
            made[variant.id] = path = tmp_path_factory.mktemp("model")
            save(variant, path)
            write(path / "tiny.gguf", read_back(path), architecture)
        return made[variant.id]

    return folder


@pytest.mark.slow
@by_case
def test_states_of_a_gguf_file_are_those_of_the_model_it_was_made_from(folders, architecture, variant, also):
    folder, sequences = folders(architecture, variant), random_sequences(10)
    truth = true_states(folder, sequences)
    assert_same_states(ours(load(folder / "tiny.gguf"), sequences), truth)
    if also:
        dense = transformers.GgufConfig("tiny.gguf", dequantize=True)
        options = {"gguf_file": "tiny.gguf", "quantization_config": dense, "attn_implementation": "eager"}
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        with float64_throughout():
            assert_same_states(states_of(theirs.eval().double(), sequences), truth)


@by_case
def test_a_gguf_file_gives_the_configuration_of_the_model(folders, architecture, variant, also):
    """All that changes a state, and what bounds a prompt."""
    folder = folders(architecture, variant)
    found, wanted = (open_checkpoint(path).config() for path in (folder / "tiny.gguf", folder))
    ours, theirs = found.constants(), wanted.constants()
    for name in ("family", "rotaries", "rotary_of_layer", "norm_epsilon"):
        ours.pop(name), theirs.pop(name)
    assert ours == theirs
    assert found.norm_epsilon == pytest.approx(wanted.norm_epsilon, rel=1e-6)
    assert (found.longest_prompt, found.longest_because) == (wanted.longest_prompt, wanted.longest_because)
    for layer in range(wanted.layers if wanted.rotaries else 0):
        mine, rotary = (config.rotaries[config.rotary_of_layer[layer]] for config in (found, wanted))
        np.testing.assert_allclose(mine.frequencies, rotary.frequencies, rtol=1e-6)
        np.testing.assert_allclose(mine.amplitudes, rotary.amplitudes, rtol=1e-6)


def test_quantised_blocks_of_fused_matrices_over_eight_devices(tmp_path):
    """Of the fused rows each device reads its own, of the columns blocks that it shares with another."""
    kind = gguf.GGMLQuantizationType.Q8_0
    save(Variant("phi3", "grouped", GROUPED), tmp_path)
    model = read_back(tmp_path)
    write(tmp_path / "tiny.gguf", model, "phi3", kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.from_numpy(gguf.dequantize(quantize(parameter.numpy(), kind), kind)))
    sequences = random_sequences(6)
    with float64_throughout():
        truth = states_of(model.double(), sequences)
    mesh = make_mesh({"data": 1, "fsdp": 2, "model": 4})
    assert_same_states(ours(load(tmp_path / "tiny.gguf", mesh), sequences), truth)


def metadata(architecture, **keys):
    sizes = {"block_count": 2, "context_length": 64, "embedding_length": 32, "feed_forward_length": 64}
    sizes |= {"attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5}
    unused = (
        "attention.layer_norm_epsilon"
        if architecture not in ("gpt2", "gptneox")
        else "attention.layer_norm_rms_epsilon"
    )
    sizes.pop(unused)
    return {"general.architecture": architecture} | {f"{architecture}.{name}": x for name, x in (sizes | keys).items()}


SHAPES = {"token_embd.weight": (96, 32)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"general.architecture": "qwen3moe"}, "'qwen3moe', which needs a mixture of experts"),
        ({"general.architecture": "gpt-oss"}, "'gpt-oss', which needs attention sinks"),
        ({"general.architecture": "gemma3n"}, "'gemma3n', which needs embeddings of their own"),
        ({"general.architecture": "falcon"}, "'falcon'; 'llama', 'qwen2'"),
        (metadata("gemma2", **{"attention.scale": 0.1}), "gemma2.attention.scale=0.1, a field that is not understood"),
        (metadata("olmo2", **{"attention.sliding_window": 8, "attention.sliding_window_pattern": [True]}),
         "sliding_window_pattern=.*true or false for each of 2 layers"),
        (metadata("phi3", **{"rope.scaling.type": "longrope"}), "Rope type 'longrope' takes short_factor"),
        (metadata("gptneox", **{"rope.dimension_count": 16}), "partial_rotary_factor"),
        (metadata("gpt2", **{"rope.freq_base": 1e4}), "gpt2.rope.freq_base"),
    ],
)  # fmt: skip
def test_what_can_not_be_run_is_refused_by_name(given, message):
    with pytest.raises(InputError, match=message):
        read_gguf(given, SHAPES)


@pytest.mark.parametrize(
    ("architecture", "layers", "divisor"),
    [("gemma2", 26, 256), ("gemma2", 46, 144), ("gemma3", 48, 256), ("gemma3", 62, 168)],
)
def test_what_gemmas_scores_are_divided_by_goes_by_the_published_sizes(architecture, layers, divisor):
    width = {46: 4608, 62: 5376}.get(layers, 3840)
    keys = {"block_count": layers, "embedding_length": width, "attention.head_count": 32 if layers in (46, 62) else 16}
    keys |= {"attention.key_length": 128 if layers in (46, 62) else 256, "rope.freq_base": 1e6}
    config = read_gguf(metadata(architecture, **keys), {"token_embd.weight": (96, width)})
    assert config.score_divisors == (divisor**0.5,) * layers


def test_windows_by_a_period_and_by_a_list():
    window = {"attention.sliding_window": 8, "rope.freq_base": 1e4, "block_count": 6, "rope.freq_base_swa": 2e4}
    layers = lambda **keys: read_gguf(metadata("gemma3", **(window | keys)), SHAPES).rotary_of_layer
    assert layers() == (1, 1, 1, 1, 1, 0)
    assert layers(**{"attention.sliding_window_pattern": 3}) == (1, 1, 0, 1, 1, 0)
    assert layers(**{"attention.sliding_window_pattern": [False, True] * 3}) == (0, 1) * 3
    assert layers(**{"attention.sliding_window": 0}) == (0,) * 6
