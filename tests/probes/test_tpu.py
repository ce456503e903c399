"""The TPU route compiles for a TPU topology (no TPU is needed)."""

import re

import jax
import pytest

from jaxprobe.cost.chips import parse_topology
from jaxprobe.plan.topologies import tpu_devices, with_little_effort, without_cache
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
def test_leave_one_out_compiles_without_communication(devices, rows):
    mesh, _ = place(devices, None, "float32")
    with jax.enable_x64(False), without_cache(), with_little_effort():
        for compiled, *arguments in row_programs(mesh, 4, rows, 1024, 2, "bfloat16", 12).values():
            text = compiled.lower(*arguments).compile().as_text()
            assert not re.search(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter", text)
            assert not re.search(r"\bf64\[", text)


def test_programs_are_of_one_size_for_every_width(devices):
    """From width 1,024 on the root is a loop: unrolled, the compiler would need an hour for large models."""
    mesh, _ = place(devices, None, "float32")

    def lines(width):
        programs = row_programs(mesh, 4, 2 * width, width, 2, "bfloat16", 12)
        return {name: len(one.lower(*its).as_text().splitlines()) for name, (one, *its) in programs.items()}

    with jax.enable_x64(False):
        assert lines(8192) == pytest.approx(lines(1024), rel=0.05)
