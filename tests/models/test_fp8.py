"""Checkpoints in 8-bit floats with a scale for each block, against PyTorch's own arithmetic of these numbers."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch

from jaxprobe.errors import InputError
from jaxprobe.mesh import make_mesh
from jaxprobe.models.files.digest import weights_digest
from jaxprobe.models.files.open import open_checkpoint
from tests.models.test_weights import load, parameters
from tests.tiny_llama import save_llama

BLOCK = 128
# Neither width ends where a block does.
SIZES = {"hidden_size": 160, "intermediate_size": 288, "num_hidden_layers": 2}
PUBLISHED = {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
    "modules_to_not_convert": ["lm_head"],
}  # fmt: skip


def in_blocks(scales, shape):
    """Each block's scale at every number of it."""
    whole = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return whole[: shape[0], : shape[1]]


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    """(config.json's fields, the tensors in 8 bits with their scales, the same as PyTorch expands them)."""
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder, kv_heads=4, sizes=SIZES)
    stored, expanded = {}, {}
    for name, weight in safetensors.torch.load_file(folder / "model.safetensors").items():
        stored[name] = expanded[name] = weight
        if ".layers." in name and weight.dim() == 2:
            padded = torch.zeros([-(-size // BLOCK) * BLOCK for size in weight.shape])
            padded[: weight.shape[0], : weight.shape[1]] = weight
            tiles = padded.reshape(padded.shape[0] // BLOCK, BLOCK, padded.shape[1] // BLOCK, BLOCK)
            scales = tiles.abs().amax((1, 3)) / 448
            stored[name] = (weight / in_blocks(scales, weight.shape)).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scales
            expanded[name] = stored[name].float() * in_blocks(scales, weight.shape)
    return json.loads((folder / "config.json").read_text()), stored, expanded


def write(folder, fields, tensors):
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("mesh", [{"data": 1}, {"fsdp": 2, "model": 4}])
def test_weights_are_those_that_pytorch_expands(tmp_path, tensors, mesh):
    """Bit for bit, and where devices' slices begin within a block."""
    fields, stored, expanded = tensors
    write(tmp_path / "8", fields | {"quantization_config": PUBLISHED}, stored)
    write(tmp_path / "32", fields, expanded)
    found, wanted = (parameters(load(tmp_path / name, make_mesh(mesh))) for name in ("8", "32"))
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, wanted)
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_the_scales_are_part_of_the_digest(tmp_path, tensors):
    fields, stored, _ = tensors
    name = next(name for name in stored if name.endswith("_scale_inv"))
    one = weights_digest(open_checkpoint(write(tmp_path / "a", fields, stored)))
    two = weights_digest(open_checkpoint(write(tmp_path / "b", fields, stored | {name: 2 * stored[name]})))
    assert one != two


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, stored: stored.pop(f"{name}_scale_inv"), "with scales missing"),
        (lambda name, stored: stored.update({f"{name}_scale_inv": torch.ones(1, 1)}), r"with scales \[1, 1\]"),
        (lambda name, stored: stored.update({f"{name}_scale_inv": torch.tensor(1.0)}), r"with scales \[\]"),
        (lambda name, stored: stored.update({name: stored[name].float()}), "and of nothing else"),
    ],
)
def test_scales_that_do_not_fit_are_refused(tmp_path, tensors, change, message):
    fields, stored, _ = tensors
    stored = dict(stored)
    change("model.layers.0.mlp.up_proj.weight", stored)
    with pytest.raises(InputError, match=f"up_proj.weight.*{message}"):
        open_checkpoint(write(tmp_path / "bad", fields, stored))
