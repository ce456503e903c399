"""The chosen mesh: whole where the model fits, cut in as few parts as do where it does not."""

import math

import jax
import jax.numpy as jnp
import pytest

from jaxprobe.mesh import make_mesh
from jaxprobe.models.divide import fit_config
from jaxprobe.models.placement import choose_mesh, device_memory, parameter_bytes, place
from jaxprobe.models.published import find_published
from jaxprobe.models.transformer import abstract_weights

GB = 10**9


def config_of(name):
    return find_published(name)[1]


@pytest.mark.parametrize("mesh", [{"data": 8}, {"model": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "model": 4}])
def test_parameter_bytes_are_those_of_the_models_own_shards(mesh):
    config = config_of("llama-3.1-8b")
    _, state = abstract_weights(config, make_mesh(mesh), jnp.bfloat16)
    leaves = jax.tree.leaves(state)
    assert parameter_bytes(config, mesh, "bfloat16") == sum(
        2 * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves
    )


@pytest.mark.parametrize(
    ("model", "devices", "memory", "dtype", "mesh"),
    [
        ("llama-2-7b", 8, None, "bfloat16", {"data": 8}),  # CPUs don't tell
        ("llama-2-7b", 8, 80 * GB, "bfloat16", {"data": 8}),
        ("llama-2-7b", 8, 16 * GB, "bfloat16", {"data": 4, "model": 2}),  # 13.2 GB, and 8 for parameters
        ("llama-2-70b", 64, 16 * GB, "bfloat16", {"data": 2, "fsdp": 4, "model": 8}),  # 8 key/value heads
        ("llama-3.1-405b", 16, 95 * GB, "bfloat16", {"fsdp": 2, "model": 8}),  # 50.7 GB: over half, but no more parts
        ("llama-2-7b", 6, 16 * GB, "float32", {"data": 3, "model": 2}),  # 13.2 GB; a third does not divide
        ("llama-2-7b", 1, 16 * GB, "bfloat16", {"data": 1}),
    ],
)
def test_choices(model, devices, memory, dtype, mesh):
    config = config_of(model)
    sizes, reason = choose_mesh(config, devices, memory, dtype)
    assert sizes == mesh and math.prod(sizes.values()) == devices and reason
    fit_config(config, {"data": 1, "fsdp": 1, "model": 1} | sizes)  # which refuses what does not divide


def test_reasons_carry_the_numbers():
    _, reason = choose_mesh(config_of("llama-2-70b"), 64, 16 * GB, "bfloat16")
    assert reason == "parameters take 137.43 GB; cut in 32 they take 4.30 of a device's 16 GB"
    _, reason = choose_mesh(config_of("llama-3.1-405b"), 16, 95 * GB, "bfloat16")
    assert reason.endswith("and no more parts divide over these devices")
    _, reason = choose_mesh(config_of("llama-2-7b"), 8, 80 * GB, "bfloat16")
    assert reason == "parameters take 13.21 GB, which leaves at least half of each device's 80 GB free"


def test_cpus_do_not_tell_their_memory():
    assert device_memory(jax.devices()) is None


def test_a_mesh_that_was_asked_for_is_taken():
    config = config_of("llama-2-7b")
    mesh, reason = place(config, "data=2,model=4", "bfloat16")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "model": 4} and reason == "as asked for"
    mesh, reason = place(config, None, "bfloat16")
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "model": 1}
    assert reason == "each device has the whole model and takes a share of the bins"
