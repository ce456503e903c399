"""The TPU route compiles for a TPU topology (no TPU is needed)."""

import re
import time

import jax
import pytest

from jaxprobe.cost.chips import parse_topology
from jaxprobe.plan.topologies import tpu_devices, without_cache
from jaxprobe.probes.solve import place, row_programs

pytestmark = pytest.mark.libtpu


@pytest.fixture(scope="module")
def devices(libtpu):
    return tpu_devices(parse_topology("v5e:2x2"))


def test_what_needs_float64_goes_to_the_host(devices):
    mesh, solver = place(devices, None, "float32")
    assert mesh.size == 4 and solver == "cholesky"
    for solver, dtype in [("eigh", "float32"), (None, "float64")]:
        mesh, solver = place(devices, solver, dtype)
        assert mesh.devices.flat[0].platform == "cpu" and solver == "eigh"


@pytest.mark.parametrize("rows", [2048, 600])
def test_leave_one_out_compiles_in_a_minute_without_communication(devices, rows):
    """At width 1,024 and more the root is a loop, of one size for every width."""
    mesh, _ = place(devices, None, "float32")
    with jax.enable_x64(False):
        programs = row_programs(mesh, 4, rows, 1024, 2, "bfloat16", 12)
        for name, (compiled, *arguments) in programs.items():
            started = time.process_time()
            with without_cache():
                text = compiled.lower(*arguments).compile().as_text()
            assert time.process_time() - started < 60, name
            assert not re.search(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", text)
            assert not re.search(r"\bf64\[", text)
