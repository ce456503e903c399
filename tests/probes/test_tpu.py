"""The TPU route compiles for a TPU topology (no TPU is needed)."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprobe.cost.chips import parse_topology
from jaxprobe.plan.topologies import tpu_devices, without_cache
from jaxprobe.probes import cholesky
from jaxprobe.probes import eigen as factors
from jaxprobe.probes.devices import over_layers
from jaxprobe.probes.search import place

pytestmark = pytest.mark.libtpu


@pytest.fixture(scope="module")
def devices(libtpu):
    return tpu_devices(parse_topology("v5e:2x2"))


def test_what_needs_float64_goes_to_the_host(devices):
    mesh, engine = place(devices, None, False, "float32")
    assert mesh.size == 4 and engine is cholesky
    for solver, grouped, dtype in [("eigh", False, "float32"), (None, True, "float32"), (None, False, "float64")]:
        mesh, engine = place(devices, solver, grouped, dtype)
        assert mesh.devices.flat[0].platform == "cpu" and engine is factors


def test_cholesky_compiles_without_communication(devices):
    mesh, engine = place(devices, None, False, "float32")
    shaped = lambda shape, dtype, spec: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
    with jax.enable_x64(True):
        x, y = shaped((4, 2048, 128), jnp.float32, P("layer")), shaped((2048, 2), jnp.float64, P())
        alphas = shaped((4, 12), jnp.float64, P("layer"))
        factor = over_layers(engine.factor, mesh, (0, None), dtype="float32")
        f = jax.tree.map(lambda leaf: shaped(leaf.shape, leaf.dtype, P("layer")), jax.eval_shape(factor, x, y))
        leave_one_out = over_layers(engine.leave_one_out, mesh, (0, 0, None, 0), dtype="float32")
        programs = [factor.lower(x, y), leave_one_out.lower(f, x, y, alphas)]
        programs += [
            over_layers(engine.weights_at, mesh, (0, 0, 0)).lower(f, x, shaped((4, 2), jnp.float64, P("layer")))
        ]
        for program in programs:
            with without_cache():
                text = program.compile().as_text()
            assert not re.search(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", text)
