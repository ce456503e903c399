"""The figures of the experiments show the numbers of their tables: read back from the drawing."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

from jaxprobe.experiments import blocks, controls, dateline, entity_types, layers, prompts
from jaxprobe.experiments.base import write_table
from jaxprobe.report.dot_figure import STYLES

KEYS = {
    "run": "a/run",
    "model": "tiny",
    "dataset": "cities",
    "prompt": "empty",
    "layer": "4",
    "target": "mean",
    "split": "test",
}


def rows(metric, *cells, **common):
    """Tidy rows, one for each (value, columns of its own); the interval is 0.1 to either side."""
    return pd.DataFrame(
        [
            KEYS | {"metric": metric, "value": value, "ci_low": value - 0.1, "ci_high": value + 0.1} | common | own
            for value, own in cells
        ]
    )


def written(axes):
    return [text.get_text() for text in axes.texts]


def blocks_table():
    groups = [("France", 0.5, 0.2), ("Peru", -0.4, -7.5)]
    cells = [
        (value, {"held_out": name, "fit": fit})
        for name, *values in groups
        for fit, value in zip(("nominal", "held_out", "difference"), [*values, values[1] - values[0]], strict=True)
    ]
    each = [(0.4, {"fit": "nominal"}), (0.3, {"fit": "held_out"})]
    return pd.concat(
        [
            rows("r2_block_mean", *cells, group="country"),
            rows("proximity_error", *((abs(value), own) for value, own in cells), group="country"),
            rows("r2", *each, group="cells of 5 degrees, 100 km", held_out="each fold"),
        ]
    )


def test_hold_outs_are_dots_with_intervals_and_far_ones_are_numbers_at_the_edge():
    (figure,) = blocks.figures(blocks_table())
    countries, cells, nearness, _ = figure.axes
    assert [label.get_text() for label in countries.get_yticklabels()] == ["France", "Peru"]
    assert countries.get_xlabel() == "" and cells.get_xlabel() == "R² about these rows' mean"
    assert nearness.get_xlim()[1] > 0.55
    nominal, held_out = (line for line in countries.lines if line.get_marker() in ("o", "D"))
    np.testing.assert_array_equal(nominal.get_xdata(), [0.5, -0.4])
    # Clipped to beyond the axis; the text below says how far it is.
    assert held_out.get_xdata()[0] == 0.2 and held_out.get_xdata()[1] < countries.get_xlim()[0]
    assert nominal.get_color() == STYLES[0]["color"] and held_out.get_color() == STYLES[1]["color"]
    assert (nominal.get_ydata() < held_out.get_ydata()).all() and (np.round(nominal.get_ydata()) == [0, 1]).all()
    intervals = [lines for lines in countries.collections if isinstance(lines, LineCollection)]
    ends = np.array([segment[:, 0] for segment in intervals[0].get_segments()])
    np.testing.assert_allclose(ends, [[0.4, 0.6], [-0.5, -0.3]])
    assert countries.get_xlim() == cells.get_xlim() and -1.2 < countries.get_xlim()[0] < -1
    assert "◂ −7.5" in written(countries) and "country" in written(countries)
    dots = [line.get_xdata().tolist() for line in cells.lines if line.get_marker() in ("o", "D")]
    assert dots == [[0.4], [0.3]]


def test_prompts_are_a_matrix_for_each_centring():
    pairs = [("empty", "empty", 0.5), ("empty", "coords", -3.0), ("coords", "empty", 0.2), ("coords", "coords", 0.6)]
    table = [
        rows("r2", *((value + shift, {"train_prompt": a, "prompt": b}) for a, b, value in pairs), centring=centring)
        for centring, shift in (("raw", 0.0), ("recentred", 0.1))
    ]
    (figure,) = prompts.figures(pd.concat(table))
    for axes, shift in zip(figure.axes[:2], (0.0, 0.1), strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), np.array([[0.5, -3.0], [0.2, 0.6]]) + shift)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["empty", "coords"]
    assert written(figure.axes[0]) == ["0.50", "−3.00", "0.20", "0.60"]
    # One scale from 0 to the best; what lies below is grey, which no shade of the scale is.
    first, second = (axes.images[0] for axes in figure.axes[:2])
    assert first.get_clim() == second.get_clim() == (0, pytest.approx(0.7))
    red, green, blue, _ = first.cmap(first.norm(-3.0))
    assert min(red, green, blue) > 0.8


def test_types_are_rows_and_columns_and_wider_training_comes_last():
    cells = [
        (value, {"train_on": a, "test_on": b, "train_kind": a if a in ("others", "all") else "type"})
        for b in ("city", "lake")
        for a, value in (("city", 0.5), ("lake", 0.1), ("others", 0.2), ("all", 0.6))
    ]
    (figure,) = entity_types.figures(rows("r2", *cells))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "city",
        "lake",
        "all other types",
        "all types",
    ]
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array()[:, 1], [0.5, 0.1, 0.2, 0.6])


def test_the_probe_stands_above_its_controls():
    cells = [(0.3, {"control": "embed"}), (0.8, {"control": "none"}), (-2.0, {"control": "within_country"})]
    (figure,) = controls.figures(rows("r2", *cells, resampled="rows"))
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["The probe", "The token embedding", "Inside each country"]
    probe, others = (line.get_xdata().tolist() for line in axes.lines if line.get_marker() in ("o", "D"))
    assert probe == [0.8] and others == [0.3, -2.0] and "◂ −2.0" in written(axes)


def layers_table(models=("small", "large"), sizes=(np.nan, np.nan), dataset="cities"):
    depths = {"embed": 0, "0": 0.5, "1": 1}
    table = []
    for number, (model, size) in enumerate(zip(models, sizes, strict=True), start=1):
        cells = [
            (0.4 * depth * number, {"layer": layer, "depth": depth, "headline": layer == "1"})
            for layer, depth in depths.items()
        ]
        of = dict(model=model, parameters=size, run=f"runs/{dataset}/{number}", dataset=dataset)
        table += [rows(metric, *cells, **of) for metric in ("r2", "spearman")]
    frame = pd.concat(table).assign(compared_with="", resampled="rows")
    other = rows("r2", (9.0, {"depth": 0.5}), compared_with="embed", resampled="rows", model=models[0])
    return pd.concat([frame, other], ignore_index=True)


def test_models_lie_on_one_plot_against_relative_depth():
    (figure,) = layers.figures(layers_table())
    for axes in figure.axes:
        small, large = axes.lines
        np.testing.assert_array_equal(small.get_xdata(), [0, 0.5, 1])
        np.testing.assert_allclose(small.get_ydata(), [0, 0.2, 0.4])
        np.testing.assert_allclose(large.get_ydata(), [0, 0.4, 0.8])
        assert small.get_color() != large.get_color() and 0.9 < axes.get_ylim()[1] <= 1.03
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["small", "large"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["Test R²", "Spearman"]


def test_models_of_several_sizes_also_lie_against_their_size():
    frame = layers_table(("m-1b", "m-70m"), (1.4e9, 7e7))
    (figure,) = layers.figures(pd.concat([frame, layers_table(("m-1b", "m-70m"), (1.4e9, 7e7), "rivers")]))
    sizes = figure.axes[-2]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["Test R²", "Spearman", "Test R², layer chosen"]
    dots = {line.get_xdata()[0]: line.get_ydata()[0] for line in sizes.lines if line.get_marker() == "o"}
    assert dots == {1.4e9: pytest.approx(0.4), 7e7: pytest.approx(0.8)} and sizes.get_xscale() == "log"
    ends = {tuple(segment[:, 1]) for lines in sizes.collections for segment in lines.get_segments()}
    assert {tuple(np.round(pair, 6)) for pair in ends} == {(0.3, 0.5), (0.7, 0.9)}
    assert [label.get_text() for label in sizes.get_xticklabels()] == ["70 M", "1.4 B"]
    # The smallest first; a line is one colour in every panel.
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["m-70m", "m-1b"]
    colours = {axes.lines[0].get_color() for axes in figure.axes[:4]}
    assert len(colours) == 1


def test_both_forms_of_a_place():
    cells = [
        (0.5, {"target_form": "degrees"}),
        (0.45, {"target_form": "unit_vector"}),
        (9, {"target_form": "difference"}),
    ]
    (figure,) = dateline.figures(pd.concat([rows("r2", *cells), rows("error_km_mean", *cells, target="place")]))
    drawn = [
        line.get_xdata().tolist() for axes in figure.axes for line in axes.lines if line.get_marker() in ("o", "D")
    ]
    assert drawn == [[0.5], [0.45]] * 2


def test_figures_are_written_and_those_of_fewer_runs_take_their_place(tmp_path):
    two = pd.concat([blocks_table(), blocks_table().assign(dataset="rivers", run="b/run")])
    assert write_table(blocks, two, tmp_path) == tmp_path / "experiments" / "blocks.csv"
    names = lambda: sorted(path.name for path in (tmp_path / "experiments").iterdir())
    files = ["blocks.csv", "blocks.parquet"]
    assert names() == ["blocks-1.png", "blocks-1.svg", "blocks-2.png", "blocks-2.svg", *files]
    write_table(blocks, blocks_table(), tmp_path)
    assert names() == ["blocks.csv", "blocks.parquet", "blocks.png", "blocks.svg"]


def test_what_has_no_interval_or_no_score_says_so():
    none = {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan}
    cells = [
        (0.8, {"control": "none"}),
        (0.7, {"control": "none", "resampled": "country", "ci_low": np.nan, "ci_high": np.nan}),
        (0.0, {"control": "embed"} | none),
    ]
    (figure,) = controls.figures(rows("r2", *cells, resampled="rows"))
    (axes,) = figure.axes
    probe, beside = (line for line in axes.lines if line.get_marker() in ("o", "D"))
    assert probe.get_xdata().tolist() == [0.8, 0.7] and np.isnan(beside.get_xdata()).all()
    assert written(axes) == ["no score"]
    assert any("a dot without a line has none" in text.get_text() for text in figure.texts)
    (with_all,) = controls.figures(rows("r2", cells[0], resampled="rows"))
    assert not any("without a line" in text.get_text() for text in with_all.texts)
    pairs = [(0.0, {"train_prompt": a, "prompt": b} | none) for a in ("empty", "coords") for b in ("empty", "coords")]
    (figure,) = prompts.figures(rows("r2", *pairs, centring="raw"))
    assert written(figure.axes[0]) == ["–"] * 4
