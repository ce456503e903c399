"""Figures show the numbers of the run's files: read back from the drawing, and the files that are written."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image
from matplotlib.colors import to_hex

from jaxprobe.report.canvas import house_style
from jaxprobe.report.figures import predicted_against_true, r2_by_layer, spread_apart, write_figures
from jaxprobe.report.map_figure import place_map
from jaxprobe.report.maps import OKABE_ITO
from jaxprobe.results.results import Run


def texts(figure):
    found = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        found += [text.get_text() for text in axes.texts] + [axes.get_title(loc="left")]
    for legend in figure.legends:
        found += [text.get_text() for text in legend.get_texts()]
    return found


def test_r2_by_layer_draws_the_scores(place_run):
    scores = place_run.read_scores()
    mean = scores[(scores["metric"] == "r2") & (scores["target"] == "mean")].set_index("layer")
    figure = r2_by_layer(Run(place_run))
    (axes,) = figure.axes
    line = next(line for line in axes.lines if line.get_linewidth() == 2)
    np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 7))
    np.testing.assert_array_equal(line.get_ydata(), mean.loc[["0", "1", "2", "3", "4", "5"], "value"])
    dot = next(line for line in axes.lines if line.get_marker() == "o")
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (5, mean.loc["4", "value"])
    diamond = next(line for line in axes.lines if line.get_marker() == "D")
    assert (diamond.get_xdata()[0], diamond.get_ydata()[0]) == (0, mean.loc["embed", "value"])
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert ticks == ["embed", "0", "1", "2", "3", "4", "5"]
    headline = f"R² {mean.loc['4', 'value']:.3f} [{mean.loc['4', 'ci_low']:.3f}, {mean.loc['4', 'ci_high']:.3f}]"
    assert f"layer 4, chosen on the training rows: {headline}" in texts(figure)


def test_map_draws_every_prediction_in_its_true_continent_s_colour(place_run):
    entities, predictions = place_run.read_entities(), place_run.read_predictions()
    figure = place_map(Run(place_run))
    main, truth, embed = figure.axes
    test = entities[entities["split"] == "test"].merge(predictions[predictions["layer"] == "4"], on="row")
    order = list(test["group_continent"].value_counts().index)
    assert [text.get_text() for text in main.get_legend().get_texts()] == order

    def drawn(axes):
        (points,) = axes.collections
        colours = [to_hex(colour) for colour in points.get_facecolors()]
        return sorted(zip(*points.get_offsets().T.tolist(), colours, strict=True))

    colours = [OKABE_ITO[order.index(name)].lower() for name in test["group_continent"]]
    for axes, which, frame in (
        (main, "predicted", test),
        (truth, "true", test),
        (
            embed,
            "predicted",
            entities.merge(predictions[predictions["layer"] == "embed"], on="row"),
        ),
    ):
        x, y = (frame[f"{which}_{name}"].astype(float).tolist() for name in ("longitude", "latitude"))
        assert drawn(axes) == sorted(zip(x, y, colours, strict=True))
    assert "GeoNames, CC BY 4.0 · Coastlines: Natural Earth" in texts(figure)


def test_map_says_how_many_predictions_lie_outside(place_run):
    predictions = place_run.read_predictions()
    moved = predictions.index[predictions["layer"] == "4"][:3]
    predictions.loc[moved, "predicted_longitude"] = 200.0
    place_run.write_predictions(predictions)
    assert "3 predictions outside the frame." in texts(place_map(Run(place_run)))


def test_time_figure_draws_predicted_against_true(time_run):
    results = Run(time_run)
    frame = time_run.read_entities().merge(time_run.read_predictions().query("layer == '4'"), on="row")
    (axes,) = predicted_against_true(results).axes
    drawn = np.asarray(axes.collections[0].get_offsets())
    np.testing.assert_array_equal(drawn, frame[["true_release_date", "predicted_release_date"]])


@pytest.mark.parametrize(
    ("fixture", "stems"),
    [("place_run", {"r2_by_layer", "map"}), ("time_run", {"r2_by_layer", "predicted_against_true"})],
)
def test_written_figures_are_pictures_and_the_same_each_time(request, fixture, stems):
    run = request.getfixturevalue(fixture)
    first = {path: path.read_bytes() for path in write_figures(Run(run))}
    assert {path.name for path in first} == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")}
    assert {path: path.read_bytes() for path in write_figures(Run(run))} == first
    for path in first:
        if path.suffix == ".svg":
            assert ElementTree.fromstring(first[path]).tag.endswith("svg")
            continue
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 800
        assert 0.02 < (pixels[..., :3].min(axis=2) < 0.99).mean() < 0.9


def test_names_that_are_no_plain_text_are_drawn_as_text(place_run):
    config = place_run.read_config()
    config["result"]["model"] = r"model $\frac{1$ <b>&amp;</b> نموذج 🏙️ " + "long " * 40
    place_run.write_config(config)
    entities = place_run.read_entities()
    entities["group_continent"] = entities["group_continent"].replace({"Asia": "آسيا 🌏 $x^2", "Europe": "</script>"})
    place_run.write_entities(entities)
    results = Run(place_run)
    assert len(write_figures(results)) == 4
    figure = place_map(results)
    title = figure.texts[0]
    assert title.get_text().startswith(r"Where model $\frac{1$ <b>&amp;</b>")
    with house_style():
        # One pixel of rounding.
        assert title.get_window_extent().x1 <= figure.bbox.width + 1


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(0.01, 0.3))
def test_spread_apart_keeps_order_and_distance(values, gap):
    moved = np.array(spread_apart(values, gap))
    order = np.argsort(values, kind="stable")
    # Rounding in sums of at most eight numbers near 1.
    assert (np.diff(moved[order]) >= gap - 1e-9).all()
    np.testing.assert_allclose(moved.mean(), np.mean(values), atol=1e-9)
    if (np.diff(np.sort(values)) >= gap).all():
        np.testing.assert_allclose(moved, values, atol=1e-9)
