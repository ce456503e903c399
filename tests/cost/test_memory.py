"""What a run is said to need, against what the compiler gives its programs."""

import numpy as np
import pytest

from jaxprobe.cost.counts import Step
from jaxprobe.cost.memory import STORED_SHARDS, Memory, memory_needed
from jaxprobe.experiments.streaming import streaming_memory
from jaxprobe.extract.extraction import Extraction
from jaxprobe.extract.forward import STEPS_IN_FLIGHT
from jaxprobe.extract.trie import plan_bins
from jaxprobe.mesh import make_mesh
from jaxprobe.models.config import LlamaConfig
from jaxprobe.plan.programs import forward_program

CONFIG = LlamaConfig(3, 256, 4, 2, 32, 1024, 256, 1024, 1e-5, tuple(np.ones(16)))
STATES = ("embed", "0", "1", "2")
ENTITIES = 3000
NONE = Memory(0, 0)


def extraction(mesh):
    """Of texts that share nothing but their first token."""
    sequences = [[1, 2 + i % 200, i // 200, i % 7] for i in range(ENTITIES)]
    each = mesh.shape["data"] * mesh.shape["fsdp"]
    ids = np.concatenate(sequences).astype(np.int32)
    plan = plan_bins(ids, np.arange(0, 4 * ENTITIES + 1, 4), bins=2 * each, multiple=each)
    return Extraction((), None, None, plan, STATES, CONFIG.width)


@pytest.mark.parametrize(
    "sizes",
    [{"data": 1}, {"data": 8}, {"data": 4, "model": 2}, {"data": 2, "fsdp": 2, "model": 2}, {"fsdp": 8}],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_has_room_for_what_the_compiler_asks(sizes, dtype):
    mesh = make_mesh(sizes)
    made = extraction(mesh)
    batch = made.plan.shards[0].batches[0]
    step = Step(*batch.tokens.shape, 16, batch.wanted.shape[1], len(STATES))
    program = forward_program(CONFIG, STATES, step, mesh, dtype)
    results = (STEPS_IN_FLIGHT + 1) * program.outputs
    asked = len(mesh.local_devices) * (program.arguments + program.temporary + results)
    shards = STORED_SHARDS * ENTITIES * len(STATES) * CONFIG.width * (4 if dtype == "float32" else 2)
    needed = memory_needed([made], CONFIG, mesh, dtype, 0, NONE)
    # Counted from shapes, on the safe side: in a model as small as this XLA does without some of the copies.
    assert needed.device == 0 and asked <= needed.host - shards <= 1.6 * asked


def test_one_state_is_fitted_at_a_time_on_however_many_devices():
    for devices in (1, 8):
        mesh = make_mesh({"data": devices})
        made = extraction(mesh)
        sums, fit = streaming_memory(len(STATES), 5, CONFIG.width, 2, mesh)
        assert fit.device == 0 and fit.host > 5 * 8 * 5 * CONFIG.width**2
        without = memory_needed([made], CONFIG, mesh, "float32", sums, NONE).host
        large = Memory(10**12, 0)
        assert memory_needed([made], CONFIG, mesh, "float32", sums, fit).host == without  # after the forward
        weights = 4 * CONFIG.parameter_count()
        assert memory_needed([made], CONFIG, mesh, "float32", sums, large).host == 10**12 + devices * (weights + sums)
