"""Counts from shapes against the traced program's own products."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxprobe.cost.counts import (
    WHITENED,
    Step,
    count_factor,
    count_fit,
    count_fit_of_sums,
    count_ridge,
    count_step,
    forward_operations,
    forward_seconds,
    matrix_weights,
)
from jaxprobe.extract.trie import plan_bins
from jaxprobe.mesh import make_mesh
from jaxprobe.models.published import find_published
from jaxprobe.models.transformer import Bins, Root, abstract_weights, forward, random_weights
from jaxprobe.plan.hlo import Collective
from jaxprobe.probes import solve
from jaxprobe.probes.devices import layer_mesh
from jaxprobe.probes.moments import ROTATED
from tests.tiny_llama import llama_config

ROW_PROGRAMS = ("survey", "normal equations", "leave-one-out", "whitening", "weights")
STEP = Step(bins=4, slots=128, root=16, wanted=24, states=33)


def products(jaxpr, times=1):
    """Operations of all matrix products: two for each pair of numbers that meet; a scan's body as often as it runs.

    And of triangular factors and what is solved by them.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += times * 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        elif equation.primitive.name == "cholesky":
            total += times * equation.invars[0].aval.shape[-1] ** 3 / 3
        elif equation.primitive.name == "triangular_solve":
            total += times * math.prod(equation.outvars[0].aval.shape) * equation.invars[0].aval.shape[-1]
        inner = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        if equation.primitive.name == "cond":  # one branch for each platform
            total += max(products(branch.jaxpr, times) for branch in equation.params["branches"])
            continue
        for value in equation.params.values():
            for part in value if isinstance(value, list | tuple) else [value]:
                if isinstance(part, jax.extend.core.ClosedJaxpr | jax.extend.core.Jaxpr):
                    total += products(getattr(part, "jaxpr", part), inner)
    return total


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3.1-8b"])
def test_operations_of_a_step_are_those_of_the_traced_forward(name):
    _, config = find_published(name)
    mesh = make_mesh({"data": 1})
    graph, parameters = abstract_weights(config, mesh, jnp.bfloat16)
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
    bins = Bins(*(ints(STEP.bins, STEP.slots),) * 3, ints(STEP.bins, STEP.wanted))
    keys = jax.ShapeDtypeStruct((config.layers, STEP.root, config.kv_heads, config.head_width), jnp.bfloat16)
    run = lambda model, bins, root: forward(model, config, bins, root, mesh=mesh, sites=config.states()).stacks
    traced = jax.make_jaxpr(run)(nnx.merge(graph, parameters), bins, Root(keys, keys, ints()))
    counted = count_step(config, STEP, {}, "bfloat16", "cpu")
    assert counted.operations == products(traced.jaxpr)
    assert counted.outputs == 2 * math.prod((STEP.states, STEP.bins, STEP.wanted, config.width))
    assert counted.collectives == ()


def test_a_mesh_shares_the_work():
    _, config = find_published("llama-2-70b")
    whole, mesh = count_step(config, STEP, {}, "bfloat16", "gpu"), {"data": 2, "fsdp": 2, "model": 8}
    shared = count_step(config, STEP, mesh, "bfloat16", "gpu")
    assert shared.operations == whole.operations / 32 and shared.outputs == whole.outputs / 32
    stream, block = 4 * 1 * 128 * 8192, matrix_weights(config) * 2 // 8
    assert set(shared.collectives) == {
        Collective("all-reduce", stream, 8, 160),
        Collective("all-reduce", stream // 2, 8, 1),
        Collective("all-gather", block, 2, 80),
        Collective("all-to-all", stream // 2, 2, 1),
    }


@pytest.mark.parametrize("rows", [8192, 2048])
def test_ridge_counts_are_those_of_the_traced_programs(rows):
    width, targets, penalties = 4096, 2, 12
    mesh = layer_mesh(jax.devices()[:1])
    counted = count_ridge(rows, width, penalties, "gpu")
    side = width if rows >= 0.75 * width else rows
    columns = {"leave-one-out": penalties * side, "weights": side, "whitening": 2 * side}
    columns["weights"] *= 2 if side == width else 1
    programs = solve.row_programs(mesh, 1, rows, width, targets, "bfloat16", penalties)
    assert list(programs) == [name for name in ROW_PROGRAMS if name in counted]
    for name, (function, *arguments) in programs.items():
        traced = products(jax.make_jaxpr(function)(*arguments).jaxpr)
        if name == "whitening":  # its loop is traced once and runs twice, the first time from x'x as it is
            traced += width**3 / 3 + (rows + width) * width**2
        # Products with targets and with the monitor's vectors are left out.
        small = 4 * rows * width * ROTATED  # of the largest dimensions alone
        assert counted[name].operations == pytest.approx(traced, rel=0.06, abs=small)
        assert counted[name].columns == columns.get(name, 0)
    once = {name: fit.operations for name, fit in counted.items()}
    whitened = once.pop("whitening", 0) * WHITENED
    assert count_fit(rows, width, penalties, "gpu").operations == sum(once.values()) + whitened


def test_fits_from_sums_are_factors_alone():
    """No product of matrices but a factor for each fold and penalty, whatever is solved by it."""
    mesh, width, folds, penalties = layer_mesh(jax.devices()[:1]), 1024, 5, 12
    with jax.enable_x64(False):
        programs = solve.sums_programs(mesh, 1, folds, width, 2, penalties)
        traced = {
            name: products(jax.make_jaxpr(function)(*arguments).jaxpr)
            for name, (function, *arguments) in programs.items()
        }
    counted = count_fit_of_sums(width, folds, penalties, "gpu")
    assert counted.columns == 13 * width
    assert counted.operations == pytest.approx(traced["five folds"] + traced["weights"], rel=0.1)


def test_a_factor_of_block_columns_takes_little_more_than_the_triangle():
    for width, most in ((4096, 1.6), (8192, 1.3), (16384, 1.15)):
        assert 1 < count_factor(width, 0, "tpu") / count_factor(width, 0, "gpu") < most
        assert 1 < count_factor(width, 2 * width, "tpu") / count_factor(width, 2 * width, "gpu") < 1.15


# ---- Against XLA's own count -----------------------------------------------------------------------------------------

# XLA also counts what is no matrix product: norms, rotations, softmax. At this width they are a few per cent.
BESIDE_PRODUCTS = 0.06


@pytest.mark.slow
@pytest.mark.parametrize("root", [(), tuple(range(16))], ids=["no root", "root"])
def test_operations_are_those_that_xla_counts(root):
    config = llama_config(layers=1, width=256, head_width=32, mlp_width=512, vocabulary=64, context=128)
    sequences = [[*root, 20 + i % 40, i % 7, i % 5] for i in range(200)]
    ids, starts = np.concatenate(sequences).astype(np.int32), np.cumsum([0, *map(len, sequences)])
    plan = plan_bins(ids, starts, bins=2, slots=64)
    mesh = make_mesh({"data": 1})
    model = random_weights(config, mesh, np.dtype("float32"))
    batches = [batch for shard in plan.shards for batch in shard.batches]
    slots = len(plan.root)
    keys = np.zeros((1, slots, 4, 32), np.float32)
    counted = 0.0
    for batch in batches:
        bins = Bins(batch.tokens, batch.positions, batch.ends, batch.wanted)
        run = lambda bins, root: forward(model, config, bins, root, mesh=mesh, sites=("final_norm",)).stacks
        step = jax.jit(run)
        counted += step.lower(bins, Root(keys, keys, np.int32(slots))).compile().cost_analysis()["flops"]
    assert forward_operations(plan, config) == pytest.approx(counted, rel=BESIDE_PRODUCTS)


def test_seconds_follow_operations_and_are_not_guessed_for_accelerators():
    mesh = make_mesh({"data": 1})
    seconds = forward_seconds(1e12, mesh)
    assert 0.1 < seconds < 1000  # 1 GFLOP/s to 10 TFLOP/s
    assert forward_seconds(2e12, mesh) == 2 * seconds  # by one rate, which is timed once
