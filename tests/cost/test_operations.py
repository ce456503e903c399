"""Operations against XLA's own count, and times that can only be longer where more is to be done."""

import jax
import numpy as np
import pytest

from jaxprobe.cost.operations import forward_operations, forward_seconds
from jaxprobe.extract.trie import plan_bins
from jaxprobe.mesh import make_mesh
from jaxprobe.models.config import LlamaConfig
from jaxprobe.models.transformer import Bins, Root, forward, random_llama

# XLA also counts what is no matrix product: norms, rotations, softmax. At this width they are a few per cent.
BESIDE_PRODUCTS = 0.06


@pytest.mark.parametrize("root", [(), tuple(range(16))], ids=["no root", "root"])
def test_operations_are_those_that_xla_counts(root):
    config = LlamaConfig(1, 256, 4, 2, 32, 512, 64, 128, 1e-5, tuple(np.ones(16)))
    sequences = [[*root, 20 + i % 40, i % 7, i % 5] for i in range(200)]
    ids, starts = np.concatenate(sequences).astype(np.int32), np.cumsum([0, *map(len, sequences)])
    plan = plan_bins(ids, starts, bins=2, slots=64)
    mesh = make_mesh({"data": 1})
    model = random_llama(config, mesh, np.dtype("float32"))
    batches = [batch for shard in plan.shards for batch in shard.batches]
    slots = len(plan.root)
    keys = np.zeros((1, slots, 4, 32), np.float32)
    counted = 0.0
    for batch in batches:
        bins = Bins(batch.tokens, batch.positions, batch.ends, batch.wanted)
        step = jax.jit(
            lambda bins, root: forward(model, config, bins, root, mesh=mesh, sums_in_blocks=False).final_norm
        )
        counted += step.lower(bins, Root(keys, keys, np.int32(slots))).compile().cost_analysis()["flops"]
    assert forward_operations(plan, config) == pytest.approx(counted, rel=BESIDE_PRODUCTS)


def test_seconds_follow_operations_and_are_not_guessed_for_accelerators():
    mesh = make_mesh({"data": 1})
    seconds = forward_seconds(1e12, mesh)
    assert 0.1 < seconds < 1000  # 1 GFLOP/s to 10 TFLOP/s
    assert forward_seconds(2e12, mesh) == 2 * seconds  # by one rate, which is timed once
