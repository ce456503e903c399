"""Safetensors and GGUF give the same parameters; what is wrong with a checkpoint is named before anything is read."""

import json

import gguf
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from gguf.quants import quantize

from jaxprobe.errors import InputError
from jaxprobe.mesh import make_mesh
from jaxprobe.models.files.digest import weights_digest
from jaxprobe.models.files.open import open_checkpoint
from jaxprobe.models.files.source import find_model
from jaxprobe.models.weights import check_tensors, load_weights
from tests.tiny_llama import reference, save_llama

GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    if name in GGUF_NAMES:
        return GGUF_NAMES[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part.removesuffix('.weight')]}.weight"


def permute(weight, heads):
    """What llama.cpp's converter does to query and key rows, written from its description: pairs side by side."""
    width = weight.shape[0] // heads
    rows = [head * width + i + half * width // 2 for head in range(heads) for i in range(width // 2) for half in (0, 1)]
    return weight[rows]


def write_gguf(path, model, kind=gguf.GGMLQuantizationType.F32, **extra):
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    for name, value in extra.items():
        writer.add_string(name, value)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if "q_proj" in name:
            values = permute(values, config.num_attention_heads)
        if "k_proj" in name:
            values = permute(values, config.num_key_value_heads)
        if values.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(name), quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(path, mesh=None):
    checkpoint = open_checkpoint(path)
    config = checkpoint.config()
    check_tensors(checkpoint, config, config.layers)
    return load_weights(checkpoint, config, mesh or make_mesh({"data": 1}), "float32")


def parameters(model):
    found = {name: np.asarray(value) for name, value in nnx.to_pure_dict(nnx.state(model.blocks)).items()}
    return found | {"embedding": np.asarray(model.embedding[...]), "final_norm": np.asarray(model.final_norm[...])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    save_llama(path)
    return path


@pytest.fixture(scope="module")
def truth(folder):
    return reference(folder)


def test_gguf_and_safetensors_give_the_same_parameters(tmp_path, folder, truth):
    write_gguf(tmp_path / "tiny.gguf", truth)
    ours, theirs = parameters(load(tmp_path / "tiny.gguf")), parameters(load(folder))
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_1"])
def test_quantised_blocks_are_what_the_gguf_package_expands(tmp_path, truth, kind):
    kind = gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "tiny.gguf", truth, kind)
    got = parameters(load(tmp_path / "tiny.gguf"))["value"][0]
    original = truth.model.layers[0].self_attn.v_proj.weight.detach().numpy()
    expanded = gguf.dequantize(quantize(original, kind), kind)
    np.testing.assert_array_equal(got.reshape(64, -1), expanded.T)


# Blocks of 32 numbers: slices of F=128 over 4 devices end where blocks do, those of D=64 over 8 within one.
@pytest.mark.parametrize("mesh", [{"fsdp": 2, "model": 4}, {"fsdp": 8}])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1"])
def test_each_device_reads_its_slice_of_a_gguf_file(tmp_path, truth, kind, mesh):
    write_gguf(tmp_path / "tiny.gguf", truth, gguf.GGMLQuantizationType[kind])
    whole = parameters(load(tmp_path / "tiny.gguf"))
    spread = parameters(load(tmp_path / "tiny.gguf", make_mesh(mesh)))
    for name in whole:
        np.testing.assert_array_equal(spread[name], whole[name], err_msg=name)


def change(folder, tmp_path, **tensors):
    """A copy of the checkpoint with tensors replaced, or taken out where None."""
    found = safetensors.numpy.load_file(folder / "model.safetensors") | tensors
    safetensors.numpy.save_file({k: v for k, v in found.items() if v is not None}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    return tmp_path


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.norm.weight": None}, r"Tensor model.norm.weight \[64\] is missing"),
        (
            {"model.layers.1.mlp.up_proj.weight": np.zeros((3, 64), np.float32)},
            r"shape \[3, 64\]; .* asks for \[128, 64\]",
        ),
        (
            {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)},
            "q_proj.bias is not part of a model of the family llama",
        ),
        (
            {"model.layers.3.input_layernorm.weight": np.ones(64, np.float32)},
            "layers.3.* is not part of a model of the family llama",
        ),
    ],
)
def test_missing_extra_and_misshapen_tensors_are_named(folder, tmp_path, tensors, message):
    with pytest.raises(InputError, match=message):
        load(change(folder, tmp_path, **tensors))


def test_all_problems_of_a_checkpoint_are_named_at_once(folder, tmp_path):
    broken = change(folder, tmp_path, **{"model.norm.weight": None, "extra": np.zeros(1, np.float32)})
    with pytest.raises(InputError) as error:
        load(broken)
    assert len(error.value.problems) == 2


@pytest.mark.parametrize("keep", [4, 200, -100])
def test_truncated_safetensors(folder, tmp_path, keep):
    change(folder, tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(InputError, match="can't be read .* Download it again"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [2, 60, 3000, -200])
def test_truncated_gguf(tmp_path, truth, keep):
    write_gguf(tmp_path / "tiny.gguf", truth)
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:keep])
    with pytest.raises(InputError, match="can't be read as GGUF .* truncated"):
        load(tmp_path / "cut.gguf")


def test_a_shard_that_is_not_there_is_named(tmp_path):
    save_llama(tmp_path, max_shard_size="60KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(InputError, match=f"lacks {gone.name}"):
        load(tmp_path)


def test_a_folder_with_pickled_weights_only_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="lacks model.safetensors. Weights are read from safetensors only"):
        load(tmp_path)


def test_the_digest_tells_weights_apart(folder, tmp_path):
    same = weights_digest(open_checkpoint(folder))
    assert same == weights_digest(open_checkpoint(folder))
    norm = np.ones(64, np.float32)
    norm[3] = 1.0001
    assert same != weights_digest(open_checkpoint(change(folder, tmp_path, **{"model.norm.weight": norm})))


def test_the_digest_is_of_contents_not_of_names(tmp_path, truth):
    """A renamed GGUF file, and shards under names that sort the other way."""
    write_gguf(tmp_path / "a.gguf", truth)
    one = weights_digest(open_checkpoint(tmp_path / "a.gguf"))
    renamed = (tmp_path / "a.gguf").rename(tmp_path / "another.gguf")
    assert weights_digest(open_checkpoint(renamed)) == one

    save_llama(tmp_path, max_shard_size="60KB")
    one, shards = weights_digest(open_checkpoint(tmp_path)), sorted(tmp_path.glob("*.safetensors"))
    names = {path.name: f"part-{len(shards) - number}.safetensors" for number, path in enumerate(shards)}
    for path in shards:
        path.rename(tmp_path / names[path.name])
    index = tmp_path / "model.safetensors.index.json"
    placed = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {tensor: names[file] for tensor, file in placed.items()}}))
    assert len(shards) > 1 and weights_digest(open_checkpoint(tmp_path)) == one


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "No model at ./nowhere"),
        ("nothing-here", "No model at nothing-here"),
        (
            "s3://bucket/model",
            "s3://bucket/model is an address of a kind .* Mount the bucket as a folder .* or copy it",
        ),
        ("someone/some-model-that-is-not-cached", "not in the local cache, and the hub can't be reached"),
    ],
)
def test_a_model_that_is_not_there(name, message):
    with pytest.raises(InputError, match=message):
        find_model(name)


def test_folders_and_files_that_are_no_models(tmp_path):
    with pytest.raises(InputError, match="has no config.json"):
        find_model(str(tmp_path))
    (tmp_path / "weights.bin").touch()
    with pytest.raises(InputError, match="is not a .gguf file"):
        find_model(str(tmp_path / "weights.bin"))
