"""Tables and plots follow from the result files, and the README's from the committed ones."""

import json
import re

import pytest

from benchmarks import paper, tables
from jaxprobe.models.published import find_published

ENTRY = {
    "engine": "jaxprobe",
    "dtype": "float32",
    "entities_per_s": 1234.5,
    "slots_per_prefix": 1.034,
    "executed_gflops": 321.4,
    "of_best_matmul": 0.876,
    "of_scan": 0.912,
    "peak_bytes": 2_500_000_000,
    "plan_s": 0.25,
    "whole": {"seconds": 31.75, "entities_per_s": 1236.2},
    "speed_up_of_jaxprobe": {"factor": 1.0, "fewer_slots": 1.0, "rate": 1.0, "planning": 1.0},
}
THEIRS = ENTRY | {"engine": "tuned", "entities_per_s": 61.7, "of_best_matmul": 0.5} | {
    "speed_up_of_jaxprobe": {"factor": 20.0, "fewer_slots": 5.0, "rate": 4.0, "planning": 1.0}
}  # fmt: skip
RESULT = {
    "settings": {"rounds": 3},
    "machine": {
        "processor": "a processor",
        "cores": 2,
        "versions": {"jax": "1", "torch": "2", "transformers": "3"},
    },
    "model": {"name": "a model"},
    "workers": {"jax-float32": {"device": "cpu"}},
    "tables": [
        {
            "dataset": "cities",
            "prompt": "coords",
            "entities": 39_585,
            "engines": [ENTRY, {key: value for key, value in THEIRS.items() if key != "whole"}],
        }
    ],
    "not_compared": {"vllm": "needs a GPU"},
}


def test_a_marked_table_is_replaced_and_the_rest_kept(tmp_path):
    (tmp_path / "extraction-a.json").write_text(json.dumps(RESULT))
    text = "before\n<!-- table:extraction-a -->\nold\n<!-- /table:extraction-a -->\nafter\n"
    made = tables.with_tables(text, tmp_path)
    assert made.startswith("before\n<!-- table:extraction-a -->\n| table, prompt |")
    assert made.endswith("<!-- /table:extraction-a -->\nafter\n") and "old" not in made
    assert "| cities, coords | 2. tuned | float32 | 61.7 | 20.0× | 5.0 × 4.0 | 1.03 | 321 (50%) | 2.5 GB |" in made
    assert "39,585 entities took 32.0 s (1,236 entities/s), planning included" in made
    assert "Not compared: vllm (needs a GPU)." in made
    assert tables.with_tables(made, tmp_path) == made


def test_a_marker_without_a_result_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="extraction-b is marked"):
        tables.with_tables("<!-- table:extraction-b -->\n<!-- /table:extraction-b -->", tmp_path)


def test_the_plot_names_every_engine(tmp_path):
    tables.plot_extraction(RESULT, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert "jaxprobe (float32)" in drawn and "2. tuned (float32)" in drawn and "1,234" in drawn


def test_readme_matches_the_result_files():
    readme = tables.ROOT / "README.md"
    named = re.findall(r"<!-- table:([\w.-]+) -->", readme.read_text())
    if not named:
        pytest.skip("README.md has no marked table")
    # A table whose result is not measured yet is empty.
    text = readme.read_text()
    for name in named:
        if not (tables.RESULTS / f"{name}.json").is_file():
            empty = f"<!-- table:{name} -->\n<!-- /table:{name} -->\n"
            assert empty in text, f"{name}.json is not there, and its table is not empty"
            text = text.replace(empty, "")
    assert tables.with_tables(text) == text


def test_the_demo_table_stands_beside_what_would_explain_it():
    score = [0.5, 0.4, 0.6]
    control = {"r2": [0.25, 0.2, 0.3], "selectivity": [0.25, 0.2, 0.31]}
    result = {
        "headline_layer": "12",
        "scores": {"12": {"r2": score, "error_km_median": [1234.5, 1200, 1300]}},
        "controls": {"embed": control, "ngrams": control, "permuted": {}},
        "seconds": 61.2,
        "peak_memory_bytes": 2.5e9,
        "machine": "2 x m",
    }
    lines = tables.demo_table(result).splitlines()
    assert lines[2] == "| the probe of layer 12 | 0.500 (0.400 to 0.600) | |"
    assert lines[3].endswith("| 0.250 (0.200 to 0.300) | 0.250 (0.200 to 0.310) |")
    assert "1,234 km" in lines[-1] and "61 s and 2.5 GB (2 x m)" in lines[-1]


# Numbers in all tensors, as the hub counts them in the published files (embedding, head and gains included).
PUBLISHED = {"llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192}


@pytest.mark.parametrize("model", paper.MODELS)
def test_hours_follow_from_llama_2s_parameters(model):
    _, config = find_published(model)
    embedding, gains = config.vocabulary * config.width, (2 * config.layers + 1) * config.width
    weights = PUBLISHED[model] - 2 * embedding - gains  # what a token meets
    tokens = 10**7
    half = paper.Scheme(utilisation=0.5, head=False)
    assert paper.hours(tokens, model, "h100", half) == pytest.approx(2 * weights * tokens / 494.5e12 / 3600)
    assert paper.hours(tokens, model, "a100", half._replace(head=True)) == pytest.approx(
        2 * (weights + embedding) * tokens / 156e12 / 3600
    )


def test_utilisations_are_medians_of_each_scheme():
    entry = lambda engine, share: {"engine": engine, "dtype": "float32", "of_best_matmul": share}
    result = {
        "tables": [{"engines": [entry("jaxprobe", ours), entry("paper_loop", ours / 2)]} for ours in (0.9, 0.2, 0.8)]
    }
    schemes = paper.measured_schemes(result, "float32")
    assert schemes == {"jaxprobe": paper.Scheme(0.8, False), "paper_loop": paper.Scheme(0.4, True)}
