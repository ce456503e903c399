"""Tables and plots follow from the result files, and the README's from the committed ones."""

import json

import numpy as np
import pandas as pd
import pytest

from benchmarks import paper, paper_tables, tables, use
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


def test_every_page_matches_the_result_files():
    texts = {page.name: page.read_text() for page in tables.pages()}
    assert "<!-- table:demo -->" in texts["README.md"] and "<!-- table:ridge -->" in texts["benchmarks.md"]
    assert [name for name, text in texts.items() if tables.with_tables(text) != text] == []


def test_the_readme_is_short():
    """Its long tables stand in docs/benchmarks.md."""
    assert len((tables.ROOT / "README.md").read_text().splitlines()) <= 150


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


def test_the_papers_tables_stand_beside_controls_and_hold_outs():
    keys = {"model": "m", "dataset": "art", "prompt": "empty", "target": "mean", "split": "test"}

    def row(value, **own):
        return keys | {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1} | own

    controls = [
        row(0.5, control="none", resampled="rows", metric="r2"),
        row(0.5, control="none", resampled="decade", metric="r2", ci_low=-1.0),
        row(0.3, control="embed", resampled="rows", metric="r2"),
        row(0.4, control="ngrams", resampled="rows", metric="r2"),
        row(0.1, control="ngrams", resampled="rows", metric="selectivity"),
        row(0.05, control="permuted", resampled="permutations", metric="p_value", ci_low=np.nan, ci_high=np.nan),
        row(0.9, control="none", resampled="rows", metric="r2", prompt="release"),
    ]
    fits = {"nominal": (0.2, 0.3), "held_out": (0.1, 0.05), "difference": (-0.15, 0.02)}
    groups = [
        row(value, group="decade", held_out=name, fit=fit, metric=metric)
        for fit, values in fits.items()
        for name, value in zip(("1950", "1960"), values, strict=True)
        for metric in ("r2_block_mean", "proximity_error")
    ]
    cells = [
        row(value, group="cells", held_out="each fold", fit=fit, metric="r2", dataset="world_place")
        for fit, value in (("nominal", 0.6), ("held_out", 0.2), ("difference", -0.4))
    ]
    published = {"llama2_7b": 0.788, "llama2_13b": 0.806, "llama2_70b": 0.885}
    found = paper_tables.summarise(
        {
            "paper": pd.DataFrame(
                [{k: keys[k] for k in ("model", "dataset", "prompt")} | {"rows": 9, "layer": "3"} | published]
            ),
            "controls": pd.DataFrame(controls),
            "blocks": pd.DataFrame(groups + cells),
            "prompts": pd.DataFrame([row(0.7, metric="r2", train_prompt="release", centring="raw")]),
        }
    )
    (run,) = found["runs"]
    assert run["controls"]["none"]["r2"] == [0.5, 0.4, 0.6] and run["controls"]["permuted"]["p_value"] == [
        0.05,
        None,
        None,
    ]
    decades, squares = found["held_out"]
    assert (decades["groups"], decades["worse"], decades["better"]) == (2, 1, 0)
    assert decades["medians"]["proximity_error"] == {"nominal": 0.25, "held_out": 0.075}
    assert squares["r2"]["difference"] == [-0.4, -0.5, -0.3]
    assert found["prompts"][0]["r2"] == [0.7, 0.6, 0.8]
    result = found | {"command": "c", "seconds": 90.0, "machine": {"processor": "a processor", "cores": 2}}
    lines = tables.paper_table(json.loads(json.dumps(result))).splitlines()
    assert (
        lines[2] == "| art, empty | 0.500 (0.400 to 0.600), layer 3 | 0.300 | 0.400 | 0.100 (0.000 to 0.200) | 0.788 |"
    )
    assert (
        lines[6] == "| art, empty | each decade: R² lower in 1 of 2 | proximity error 0.250 | proximity error 0.075 |"
    )
    assert lines[7] == "| world_place, empty | cells | R² 0.600 (0.500 to 0.700) | R² 0.200 (0.100 to 0.300) |"
    assert lines[9] == "m; rows a table: 9. a processor, 2 cores, 1.5 minutes." and lines[10] == "Made by `c`."


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


def test_what_a_log_of_two_starts_tells():
    start = (
        "1.50 1.00 0.50 2/183 1804\n200 entities, 9 layers: 1.0 million, about 2 min at this machine's rate.\n"
        "\tUser time (seconds): 60.25\n\tSystem time (seconds): 1.75\n"
        "\tElapsed (wall clock) time (h:mm:ss or m:ss): {}\n\tMaximum resident set size (kbytes): {}\n"
    )
    found = use.read_log(start.format("1:02:03", 2_000_000) + start.format("10:00.50", 1_000_000))
    assert found["starts"] == 2 and found["seconds"] == 3723 + 600.5 and found["cpu_seconds"] == 2 * 62
    assert found["announced"] == "200 entities, 9 layers: 1.0 million, about 2 min at this machine's rate."
    assert found["peak_memory_bytes"] == 2_048_000_000 and found["load_averages"] == [1.5, 1.5]
    assert use.read_log("")["seconds"] is None
