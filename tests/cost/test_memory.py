"""What a run is said to need, against what the compiler gives its programs."""

import tracemalloc

import numpy as np
import pytest

from jaxprobe.cost.counts import Step
from jaxprobe.cost.memory import STORED_SHARDS, fit_memory, memory_needed
from jaxprobe.extract.extraction import Extraction
from jaxprobe.extract.forward import STEPS_IN_FLIGHT
from jaxprobe.extract.sums import moments_size
from jaxprobe.extract.trie import plan_bins
from jaxprobe.mesh import make_mesh
from jaxprobe.plan.programs import forward_program
from jaxprobe.probes.metrics import score, scoring_memory
from tests.tiny_llama import llama_config

pytestmark = pytest.mark.compiled_fully

CONFIG = llama_config(width=256, head_width=32, mlp_width=1024, vocabulary=256, context=1024)
STATES = ("embed", "0", "1", "2")
ENTITIES = 3000


def extraction(mesh):
    """Of texts that share nothing but their first token."""
    sequences = [[1, 2 + i % 200, i // 200, i % 7] for i in range(ENTITIES)]
    each = mesh.shape["data"] * mesh.shape["fsdp"]
    ids = np.concatenate(sequences).astype(np.int32)
    plan = plan_bins(ids, np.arange(0, 4 * ENTITIES + 1, 4), bins=2 * each, multiple=each)
    return Extraction((), None, None, plan, STATES, CONFIG.width, {})


@pytest.mark.slow
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
    needed = memory_needed([made], CONFIG, mesh, dtype, scored_rows=100, targets=2)
    # Counted from shapes, on the safe side: in a model as small as this XLA does without some of the copies.
    assert needed.device == 0 and asked <= needed.host - shards <= 1.6 * asked


def needed_without_store(devices, **sizes):
    mesh = make_mesh({"data": devices})
    return memory_needed([extraction(mesh)], CONFIG, mesh, "float32", **{"targets": 2, "folds": 5} | sizes).host


def test_one_state_is_fitted_at_a_time_on_however_many_devices():
    for devices in (1, 8):
        twice, once = (needed_without_store(devices, folds=folds, scored_rows=100) for folds in (200, 100))
        each = -(-len(STATES) // devices)
        sums = devices * (moments_size(each, 200, CONFIG.width, 2) - moments_size(each, 100, CONFIG.width, 2))
        fit = fit_memory(200, CONFIG.width, 2) - fit_memory(100, CONFIG.width, 2)
        assert twice - once == sums + fit
        assert once > devices * 4 * CONFIG.parameter_count()


def test_scores_of_streamed_rows_are_counted_with_the_weights_beside_them():
    few, many = (needed_without_store(1, scored_rows=rows) for rows in (1000, 10_000_000))
    assert few == needed_without_store(1, scored_rows=2000)  # a step of the forward is more
    weights, predictions = 4 * CONFIG.parameter_count(), 8 * 10_000_000 * len(STATES) * 2
    assert many > weights + 2 * predictions


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "targets", "places"), [(3, 1, False), (8, 2, True), (31, 2, True), (8, 4, False)])
@pytest.mark.parametrize("rows", [1000, 60_000])
def test_scoring_takes_no_more_than_is_counted(rows, layers, targets, places):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(rows, targets))
    predictions = truth + rng.normal(size=(layers, rows, targets))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    # The ranks' chunks are as large as the others', so the first few tell the peak.
    score(truth, predictions, places=places, replicates=210 if rows == 1000 else 70)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    counted = scoring_memory(rows, layers, targets)
    assert peak <= counted <= 2 * peak
