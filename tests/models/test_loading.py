"""What loading reads and holds: every slice once, one tensor at a time, and copies of heads on request."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from jax.sharding import NamedSharding, PartitionSpec

from jaxprobe.mesh import make_mesh, parse_mesh
from jaxprobe.models.divide import fit_config
from jaxprobe.models.families.known import parameters
from jaxprobe.models.files.open import open_checkpoint
from jaxprobe.models.transformer import random_weights
from jaxprobe.models.weights import _set_layer, load_weights
from tests.tiny_llama import save_llama

# 2 GB in bfloat16; no tensor is larger than 25 MB, and a stacked parameter is 20 times that.
LARGE = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 20,
    "intermediate_size": 6144,
    "vocab_size": 4096,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
}


def tensor_shapes(config):
    """Hugging Face's names and shapes, from its own documentation of Llama."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    block = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (wide, width),
        "mlp.up_proj": (wide, width),
        "mlp.down_proj": (width, wide),
    }
    layers = range(config["num_hidden_layers"])
    shapes = {f"model.layers.{layer}.{name}.weight": shape for layer in layers for name, shape in block.items()}
    return {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)} | shapes


def write_sharded(folder, config, layers_a_file=4):
    """A checkpoint of several files without ever holding one: each tensor repeats a random megabyte from its own start.

    Returns the size of its largest tensor in bytes.
    """
    pattern = (np.random.default_rng(0).standard_normal(2**19) * 0.02).astype(ml_dtypes.bfloat16).tobytes()
    shapes, files, largest = tensor_shapes(config), {}, 0
    for name in shapes:
        part = int(name.split(".")[2]) // layers_a_file if ".layers." in name else 0
        files.setdefault(f"model-{part:05d}.safetensors", []).append(name)
    for file, names in files.items():
        sizes = [2 * int(np.prod(shapes[name])) for name in names]
        ends = np.cumsum(sizes).tolist()
        header = {
            name: {"dtype": "BF16", "shape": shapes[name], "data_offsets": [end - size, end]}
            for name, size, end in zip(names, sizes, ends, strict=True)
        }
        text = json.dumps(header).encode()
        largest = max(largest, *sizes)
        with open(folder / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for number, size in enumerate(sizes):
                start = 4096 * ((7 * number) % 64)
                while size:
                    size -= out.write(pattern[start : start + size])
    index = {"weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    return largest


LOAD_AND_MEASURE = """
import os, re, sys
os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"] = "--xla_force_host_platform_device_count=8", "cpu"
from pathlib import Path
import jax, numpy, safetensors
from jaxprobe.mesh import make_mesh, parse_mesh
from jaxprobe.models.files.open import open_checkpoint
from jaxprobe.models.weights import load_weights
from jaxprobe.host.progress import peak_memory
folder, mesh = Path(sys.argv[1]), make_mesh(parse_mesh(sys.argv[2]))
for device in jax.devices():
    jax.device_put(numpy.zeros(1), device)
before = int(re.search(r"VmRSS:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
checkpoint = open_checkpoint(folder)
model = load_weights(checkpoint, checkpoint.config(), mesh, "bfloat16")
peak = peak_memory()
held = sum(part.data.nbytes for weight in jax.tree.leaves(model) for part in weight.addressable_shards)
# Read by the safetensors package: the last layer of one parameter, and what is not stacked.
with safetensors.safe_open(folder / "model-00004.safetensors", framework="numpy") as file:
    down = file.get_tensor("model.layers.19.mlp.down_proj.weight")
assert (numpy.asarray(model.blocks.down[...][19]) == down.T).all()
with safetensors.safe_open(folder / "model-00000.safetensors", framework="numpy") as file:
    assert (numpy.asarray(model.embedding[...]) == file.get_tensor("model.embed_tokens.weight")).all()
print(before, held, peak)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder of 2 GB, gone after the tests, and its largest tensor's size."""
    folder = tmp_path_factory.mktemp("large")
    yield folder, write_sharded(folder, LARGE)
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's memory from /proc")
@pytest.mark.parametrize("mesh", ["fsdp=2,model=4", "data=2,fsdp=2,model=2"])
def test_loading_two_gigabytes_takes_little_more_than_the_parameters(large, mesh):
    """At most twice the largest tensor and 300 MB beyond the parameters; a stacked parameter alone has 500 MB."""
    folder, largest = large
    command = [sys.executable, "-c", LOAD_AND_MEASURE, str(folder), mesh]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, held, peak = map(int, done.stdout.split())
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert stored > 2e9 and held > 0.999 * stored * parse_mesh(mesh).get("data", 1)
    assert peak - before - held <= 2 * largest + 300e6


class Counting:
    """A checkpoint that notes what is read of it."""

    def __init__(self, checkpoint):
        self.checkpoint, self.is_gguf, self.shapes, self.reads = checkpoint, checkpoint.is_gguf, checkpoint.shapes, []

    def read(self, name, index):
        self.reads.append((name, index))
        return self.checkpoint.read(name, index)


@pytest.mark.parametrize("mesh", ["data=8", "model=4", "data=2,fsdp=2,model=2"])
def test_every_number_is_read_once_however_many_devices_hold_it(tmp_path, mesh):
    save_llama(tmp_path)
    counting = Counting(open_checkpoint(tmp_path))
    load_weights(counting, counting.checkpoint.config(), make_mesh(parse_mesh(mesh)), "float32")
    read = Counter()
    for name, index in counting.reads:
        read[name] += int(np.prod([part.stop - part.start for part in index]))
    shapes = dict(counting.checkpoint.shapes())
    del shapes["lm_head.weight"]
    assert read == {name: np.prod(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("kind", ["F32", "BF16", "F16"])
def test_bits_are_kept(tmp_path, kind):
    """What the safetensors package reads, in the dtype of the file and widened."""
    import torch

    dtype = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[kind]
    save_llama(tmp_path, dtype=dtype, max_shard_size="60KB")
    truth = {}
    for path in tmp_path.glob("*.safetensors"):
        with safetensors.safe_open(path, framework="numpy") as file:
            truth |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
    checkpoint = open_checkpoint(tmp_path)
    for wanted in ("float32", "bfloat16"):
        model = load_weights(checkpoint, checkpoint.config(), make_mesh({"data": 1}), wanted)
        up = np.stack([truth[f"model.layers.{layer}.mlp.up_proj.weight"].T for layer in range(3)])
        np.testing.assert_array_equal(np.asarray(model.blocks.up[...]), up.astype(wanted))
        assert model.blocks.up[...].dtype == wanted


def test_setting_a_layer_touches_no_other():
    """XLA on a CPU has no bfloat16 of its own: it would widen the whole stack for each of its layers."""
    sharding = NamedSharding(make_mesh({"data": 1}), PartitionSpec())
    stack, layer = (jax.ShapeDtypeStruct(shape, "bfloat16", sharding=sharding) for shape in ((32, 16, 8), (16, 8)))
    program = _set_layer.lower(stack, layer, np.int32(1), stack).compile().as_text()
    assert "bf16[32,16,8]" in program and "f32[" not in program


def replicated(config, mesh):
    return fit_config(config, mesh.shape, replicate_kv=True)


@pytest.mark.slow
@pytest.mark.parametrize("model_devices", [4, 8])
def test_copies_of_heads_hold_the_same_numbers(tmp_path, model_devices):
    save_llama(tmp_path, kv_heads=2)
    checkpoint, mesh = open_checkpoint(tmp_path), make_mesh({"model": model_devices})
    whole = load_weights(checkpoint, checkpoint.config(), make_mesh({"data": 1}), "float32")
    copied = load_weights(checkpoint, replicated(checkpoint.config(), mesh), mesh, "float32")
    for name in (name for name, one in parameters(checkpoint.config()).items() if one.in_block):
        expected, found = (np.asarray(getattr(model.blocks, name)[...]) for model in (whole, copied))
        if name in ("key", "value"):
            expected = np.repeat(expected, model_devices // 2, axis=2)
        np.testing.assert_array_equal(found.ravel(), expected.ravel(), err_msg=name)
    for weight in (copied.blocks.key, copied.blocks.query):
        assert {part.data.shape[2] for part in weight[...].addressable_shards} == {1}


@pytest.mark.slow
@pytest.mark.compiled_fully
def test_random_weights_with_copies_of_heads_are_the_same_model(tmp_path):
    save_llama(tmp_path, kv_heads=2)
    config, one = open_checkpoint(tmp_path).config(), make_mesh({"data": 1})
    whole, copied = (random_weights(c, one, "float32", seed=3) for c in (config, config.with_kv_copies(4)))
    for name in ("query", "output", "down"):
        expected, found = (np.asarray(getattr(model.blocks, name)[...]).ravel() for model in (whole, copied))
        np.testing.assert_array_equal(found, expected, err_msg=name)
    expected, found = (np.asarray(model.blocks.key[...]) for model in (whole, copied))
    np.testing.assert_array_equal(found, np.repeat(expected, 4, axis=2))
