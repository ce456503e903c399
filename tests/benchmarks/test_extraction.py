"""The extraction benchmark on a tiny model: every engine runs, agrees with Hugging Face, and adds up."""

import json

import numpy as np
import pytest

from benchmarks import agreement, extraction
from benchmarks.baselines.batches import by_length, common_prefix, in_file_order
from benchmarks.engines import ENGINES, NOT_COMPARED
from benchmarks.summary import speed_up, summarise
from benchmarks.worker import systematic_sample
from jaxprobe.data.catalog import load_table
from tests import compiling, tiny_llama
from tests.tiny_llama import save_llama, save_tokenizer

pytestmark = pytest.mark.slow

ENTITIES = 300


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    vocabulary = save_tokenizer(folder, load_table("cities", limit=500).texts)
    save_llama(folder, vocabulary=vocabulary)
    settings = extraction.Settings(
        model=str(folder),
        dataset=("cities",),
        prompt=("coords",),
        entities=ENTITIES,
        dtype=("float32",),
        engine=("paper_loop", "tuned", "prefix_cached", "transformer_lens", "nnsight"),
        rounds=2,
        seconds=0.01,
        check=24,
        out=folder / "results" / "tiny.json",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(extraction.STEP, "cpu", (64, 64))
        # One device, as on the machines that are measured; the tests' own eight would share two cores.
        patch.setenv("XLA_FLAGS", compiling.FLAGS)
        # PyTorch's threads wait for each other in every tiny product, for a minute where another process computes.
        patch.setenv("OMP_NUM_THREADS", "1")
        found = extraction.main(settings)
    assert json.loads(settings.out.read_text()) == json.loads(json.dumps(found))
    return found


def test_every_engine_runs_or_says_why_not(result):
    (table,) = result["tables"]
    ran = {entry["engine"] for entry in table["engines"]}
    assert ran >= {"jaxprobe", "paper_loop", "tuned", "prefix_cached"}
    assert set(result["not_compared"]) >= set(NOT_COMPARED)
    assert ran | set(result["not_compared"]) >= {"transformer_lens", "nnsight"}
    assert set(result["workers"]) == {"torch-float32", "jax-float32"}


def test_all_states_are_the_models_own(result):
    for entry in result["tables"][0]["engines"]:
        assert 0 < entry["agreement"]["row_norm"] <= tiny_llama.ROW_NORM, entry["engine"]
        assert 0 < entry["agreement"]["per_dimension"] <= tiny_llama.PER_DIMENSION, entry["engine"]
        assert entry["agreement"]["states"] == 4


def test_the_bounds_are_those_of_the_forwards_own_tests():
    assert (agreement.ROW_NORM, agreement.PER_DIMENSION) == (tiny_llama.ROW_NORM, tiny_llama.PER_DIMENSION)


def test_schemes_run_fewer_and_fewer_slots(result):
    (table,) = result["tables"]
    slots = {entry["engine"]: entry["slots"] for entry in table["engines"]}
    prefixes = table["distinct_prefixes"]
    assert slots["paper_loop"] > slots["tuned"] > slots["prefix_cached"] > prefixes
    assert slots["paper_loop"] >= table["tokens"]


def test_figures_follow_from_raw_samples(result):
    (table,) = result["tables"]
    for entry in table["engines"]:
        assert len(entry["seconds"]) == 2 and min(entry["seconds"]) > 0
        assert entry["peak_bytes"] > 1e7
        parts = entry["speed_up_of_jaxprobe"]
        assert parts["factor"] == pytest.approx(parts["fewer_slots"] * parts["rate"] * parts["planning"])
        assert entry["useful_gflops"] <= entry["executed_gflops"]
    ours = table["engines"][0]
    assert ours["engine"] == "jaxprobe" and ours["speed_up_of_jaxprobe"]["factor"] == 1
    assert ours["whole"]["entities_per_s"] > 0 and ours["scan_gflops"] > 0


def test_a_known_timing_gives_known_figures():
    entry = {"extra_flops": 0, "plan_s": 0.0}
    entry |= {"dtype": "float32"}
    ours = entry | {"engine": "jaxprobe", "slots": 100, "sample": {"slots": 50}, "seconds": [1, 1]}
    theirs = entry | {
        "engine": "tuned",
        "dtype": "float32",
        "slots": 400,
        "sample": {"slots": 40},
        "seconds": [2, 3, 1],
    }
    rates = {
        "jax-float32": [{"matmul": {"a": 3e-6}, "scan": 2e-6}, {"matmul": {"a": 1e-6}, "scan": 1e-6}],
        "torch-float32": [{"matmul": {"a": 1.0}}],
    }
    table = {"entities": 10, "distinct_prefixes": 80, "rates": rates, "engines": [ours, theirs]}
    summarise(table, flops_per_token=10)
    assert ours["table_s"] == 2 and theirs["table_s"] == 20
    assert ours["entities_per_s"] == 5 and theirs["entities_per_s"] == 0.5
    assert ours["slots_per_prefix"] == 1.25
    assert ours["executed_gflops"] == pytest.approx(500e-9) and ours["useful_gflops"] == pytest.approx(400e-9)
    assert ours["of_best_matmul"] == pytest.approx(1 / 6) and ours["of_scan"] == pytest.approx((1 / 4 + 1 / 2) / 2)
    assert speed_up(ours, theirs) == pytest.approx({"factor": 10, "fewer_slots": 4, "rate": 2.5, "planning": 1})


def table_of(*sequences):
    return np.concatenate(sequences).astype(np.int32), np.cumsum([0, *map(len, sequences)])


def test_batches_hold_every_row_once():
    ids, starts = table_of([1, 7, 5], [1, 7, 5, 6, 2], [1, 7, 5], [1, 7, 3, 4], [1, 7, 9])
    assert common_prefix(ids, starts) == 2
    for batches, skip in ((in_file_order(ids, starts, 2), 0), (by_length(ids, starts, 2, skip=2), 2)):
        rows = np.concatenate([batch.rows for batch in batches])
        assert sorted(rows) == [0, 1, 2, 3, 4]
        for batch in batches:
            for row, sequence in zip(batch.rows, batch.sequence, strict=True):
                length = batch.last[sequence] + 1
                wanted = ids[starts[row] + skip : starts[row + 1]]
                np.testing.assert_array_equal(batch.tokens[sequence, :length], wanted)
    assert [batch.tokens.shape for batch in batches] == [(2, 1), (2, 3)]  # one of the two equal sequences is left out


def test_a_common_prefix_leaves_every_sequence_a_token():
    assert common_prefix(*table_of([1, 7, 5], [1, 7, 5, 6])) == 2
    assert common_prefix(*table_of([1, 2], [1, 3])) == 1


def test_a_systematic_sample_spans_the_parts():
    for seed in range(5):
        sample = systematic_sample(100, 4, seed)
        assert np.array_equal(np.array(sample) // 25, [0, 1, 2, 3])
    assert systematic_sample(3, 10, 0) == [0, 1, 2]


def test_a_wrong_state_stops_the_benchmark():
    truth = {"0": np.arange(12.0).reshape(4, 3) + 1}
    assert agreement.largest_errors({"0": truth["0"]}, truth) == {"states": 1, "row_norm": 0, "per_dimension": 0}
    for wrong in (truth["0"] * 1.001, np.where(truth["0"] == 4, np.nan, truth["0"])):
        entry = {"engine": "tuned", "dtype": "float32", "agreement": agreement.largest_errors({"0": wrong}, truth)}
        with pytest.raises(RuntimeError, match="tuned"):
            agreement.require_same([entry])


def test_engines_are_named_once():
    assert not set(ENGINES) & set(NOT_COMPARED)
