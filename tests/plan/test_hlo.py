"""Collectives of real compiled programs, whose number and sizes are known by construction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxprobe.plan.hlo import Collective, collectives, turns

TURNS = 5


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def compiled_text(mesh, body, shape=(4, 128)):
    """``body`` on each device's [4, 128] float32, in a loop of TURNS."""
    loop = lambda x: lax.fori_loop(0, TURNS, lambda i, x: body(x), x)
    mapped = jax.shard_map(loop, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    return jax.jit(mapped).lower(jax.ShapeDtypeStruct((2 * shape[0], shape[1]), jnp.float32)).compile().as_text()


SIZE = 4 * 128 * 4  # bytes of x on one device


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda x: lax.psum(jnp.sin(x), "model") / 4, Collective("all-reduce", SIZE, 4, TURNS)),
        (lambda x: lax.psum(jnp.sin(x), "data") / 4, Collective("all-reduce", SIZE, 2, TURNS)),
        (
            lambda x: jnp.sin(lax.all_gather(jnp.sin(x), "model", tiled=True))[:4],
            Collective("all-gather", 4 * SIZE, 4, TURNS),
        ),
        (
            lambda x: jnp.tile(lax.psum_scatter(jnp.sin(x), "model", tiled=True), (4, 1)),
            Collective("reduce-scatter", SIZE, 4, TURNS),
        ),
        (
            lambda x: lax.ppermute(jnp.sin(x), "model", [(i, (i + 1) % 4) for i in range(4)]),
            Collective("collective-permute", SIZE, 2, TURNS),
        ),
        (lambda x: lax.all_to_all(jnp.sin(x), "model", 0, 0, tiled=True), Collective("all-to-all", SIZE, 4, TURNS)),
    ],
    ids=["psum over model", "psum over data", "all_gather", "psum_scatter", "ppermute", "all_to_all"],
)
def test_kind_size_devices_and_turns(mesh, body, expected):
    text = compiled_text(mesh, body)
    assert collectives(text) == [expected]
    assert turns(text) == TURNS


def test_inner_loops_run_for_each_outer_turn(mesh):
    text = compiled_text(mesh, lambda x: lax.fori_loop(0, 3, lambda i, x: lax.psum(jnp.sin(x), "model"), x))
    assert collectives(text) == [Collective("all-reduce", SIZE, 4, 3 * TURNS)]
    assert turns(text) == 3 * TURNS


def test_no_collectives_and_no_loop():
    text = jax.jit(jnp.sin).lower(jax.ShapeDtypeStruct((8,), jnp.float32)).compile().as_text()
    assert collectives(text) == [] and turns(text) == 1


def test_bytes_sent_by_ring_algorithms():
    assert Collective("all-gather", 800, 4, 3).sent == 3 * 600
    assert Collective("all-reduce", 800, 4, 1).sent == 1200
    assert Collective("reduce-scatter", 800, 4, 1).sent == 600
    assert Collective("collective-permute", 800, 2, 1).sent == 800


# As libtpu writes it: a mesh of named axes, and one all-gather in the three places where it starts, goes on and ends.
OVERLAPPED = """HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%first (p: bf16[64,8]) -> bf16[512,8] {
  %all-gather.1 = bf16[512,8]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['a'=2,'b'=8,'c'=4] {'b'}
}

%second (p: bf16[64,8]) -> bf16[512,8] {
  %all-gather.2 = bf16[512,8]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['a'=2,'b'=8,'c'=4] {'b'}
}

%all-reduce-scatter.1 (p: f32[16,8]) -> f32[2,8] {
  %all-reduce.7 = f32[16,8]{1,0} all-reduce(%p), channel_id=4, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%body (p: (s32[], bf16[64,8])) -> (s32[], bf16[64,8]) {
  %fusion.1 = bf16[512,8]{1,0} fusion(%x), kind=kCustom, calls=%first
  %fusion.2 = bf16[512,8]{1,0} fusion(%x), kind=kCustom, calls=%second
  %fusion.3 = f32[2,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
}

%condition (p: (s32[], bf16[64,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(32)
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (p: bf16[64,8]) -> bf16[64,8] {
  %loop = (s32[]{:T(128)}, bf16[64,8]{1,0}) while(%start), condition=%condition, body=%body
  %all-reduce-start.9 = f32[4,8]{1,0} all-reduce-start(%z), channel_id=9, replica_groups=[8,8]<=[64], to_apply=%add
}
"""


def test_what_libtpu_writes():
    assert collectives(OVERLAPPED) == [
        Collective("all-reduce", 4 * 8 * 4, 8, 1),
        Collective("all-gather", 512 * 8 * 2, 8, 32),
        Collective("reduce-scatter", 16 * 8 * 4, 8, 32),
    ]
