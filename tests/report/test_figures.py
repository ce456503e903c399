"""Figures show the numbers of the run's files: read back from the drawing, and the files that are written."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image
from matplotlib.colors import to_hex

from jaxprobe.report.canvas import house_style
from jaxprobe.report.figures import INSIDE, predicted_against_true, r2_by_layer, spread_apart, write_figures
from jaxprobe.report.map_figure import place_map
from jaxprobe.report.maps import OKABE_ITO
from jaxprobe.results.results import Run
from jaxprobe.sites import axis_positions
from tests.invented import QUALITY, city_entities, write_run


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
    np.testing.assert_array_equal(line.get_xdata(), np.arange(6))
    np.testing.assert_array_equal(line.get_ydata(), mean.loc[["0", "1", "2", "3", "4", "5"], "value"])
    dot = next(line for line in axes.lines if line.get_marker() == "o")
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (4, mean.loc["4", "value"])
    diamond = next(line for line in axes.lines if line.get_marker() == "D")
    assert (diamond.get_xdata()[0], diamond.get_ydata()[0]) == (-1, mean.loc["embed", "value"])
    ticks = [label.get_text() for label in axes.get_xticklabels()]
    assert sorted(ticks) == ["0", "1", "2", "3", "4", "5", "embed"]
    headline = f"R² {mean.loc['4', 'value']:.3f} [{mean.loc['4', 'ci_low']:.3f}, {mean.loc['4', 'ci_high']:.3f}]"
    assert f"layer 4, chosen on the training rows: {headline}" in texts(figure)


def with_r2(run, layer, value, low, high):
    """Set a layer's R2, of the mean and of every target."""
    scores = run.read_scores()
    scores.loc[(scores["layer"] == layer) & (scores["metric"] == "r2"), ["value", "ci_low", "ci_high"]] = (
        value,
        low,
        high,
    )
    run.write_scores(scores)


def inside(figure):
    """Whether every label of every axes stands inside of the picture."""
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    return all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)


@pytest.mark.parametrize("worst", [-750.0, -1e53])
def test_a_bad_probe_is_marked_at_the_edge_and_does_not_press_the_rest(place_run, worst):
    with_r2(place_run, "3", worst, 5 * worst, 0.51)
    (axes,) = (figure := r2_by_layer(Run(place_run))).axes
    low, high = axes.get_ylim()
    assert -1.2 < low <= -1 and 0.8 < high <= 1.05
    (mark,) = [line for line in axes.lines if line.get_marker() == "v"]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (3, low)
    named = "−750" if worst == -750 else "−1.00e+53"
    assert any(text.startswith("▼ below the axis: 1 state, the least " + named) for text in texts(figure))
    # What is drawn stays where a renderer can hold it.
    drawn = np.concatenate([line.get_ydata() for line in axes.lines])
    assert np.abs(drawn).max() < 5 and inside(figure)


@pytest.mark.slow
def test_where_every_probe_is_bad_the_axis_still_points_up(place_run):
    for layer in ("embed", *"012345"):
        with_r2(place_run, layer, -750.0, -3613.0, -2.0)
    (axes,) = (figure := r2_by_layer(Run(place_run))).axes
    low, high = axes.get_ylim()
    assert low < -1 < 0 < high < 0.3 and inside(figure)


def test_an_interval_that_leaves_out_its_own_score_is_drawn_from_end_to_end(place_run):
    with_r2(place_run, "embed", 0.2, 0.25, 0.3)
    with_r2(place_run, "4", 0.8, 0.5, 0.7)
    assert len(write_figures(Run(place_run))) == 4
    (axes,) = r2_by_layer(Run(place_run)).axes
    (ends,) = [line for line in axes.lines if line.get_marker() == "_"]
    np.testing.assert_array_equal(ends.get_ydata(), [0.25, 0.3])


@pytest.mark.parametrize("layers", [["embed", "12"], ["12"], ["embed", "0", "3", "20", "final_norm"]])
def test_layers_stand_at_their_numbers(tmp_path, layers):
    quality = dict(zip(layers, np.linspace(0.3, 0.8, len(layers)), strict=True))
    headline = [layer for layer in layers if layer.isdecimal()][-1]
    results = Run(write_run(tmp_path / "run", city_entities(300), quality, "cities", headline=headline))
    (axes,) = r2_by_layer(results).axes
    left, right = axes.get_xlim()
    positions = axis_positions(results.layers)
    assert all(positions[layer] == int(layer) for layer in layers if layer.isdecimal())
    assert all(left < place < right for place in positions.values())
    assert headline in [label.get_text() for label in axes.get_xticklabels()]


@pytest.mark.slow
def test_sites_inside_of_blocks_have_lines_of_their_own(tmp_path):
    quality = {"embed": 0.2, "0.mid": 0.3, "mlp.0": 0.5, "0": 0.4, "1.mid": 0.45, "mlp.1": 0.7, "1": 0.6}
    run = write_run(tmp_path / "run", city_entities(300), quality, "cities", headline="mlp.1")
    (axes,) = (figure := r2_by_layer(Run(run))).axes
    mean = Run(run).by_layer("r2")["value"]
    drawn = {line.get_color(): line for line in axes.lines if line.get_linewidth() == 1.4}
    for kind, names, places in (("mid", ["0.mid", "1.mid"], [-0.5, 0.5]), ("mlp", ["mlp.0", "mlp.1"], [-0.25, 0.75])):
        np.testing.assert_array_equal(drawn[INSIDE[kind][0]].get_xdata(), places)
        np.testing.assert_array_equal(drawn[INSIDE[kind][0]].get_ydata(), mean[names])
    stream = next(line for line in axes.lines if line.get_linewidth() == 2)
    np.testing.assert_array_equal(stream.get_ydata(), mean[["0", "1"]])
    assert any("the MLP's neurons of layer 1, chosen" in text for text in texts(figure))
    assert len(write_figures(Run(run))) == 4
    made_elsewhere = {"encoder": 0.3, "decoder.0": 0.5, "decoder.1": 0.6}
    elsewhere = write_run(tmp_path / "elsewhere", city_entities(300), made_elsewhere, "cities", headline="decoder.0")
    assert len(write_figures(Run(elsewhere))) == 4
    assert {label.get_text() for label in r2_by_layer(Run(elsewhere)).axes[0].get_xticklabels()} == set(made_elsewhere)
    only = write_run(tmp_path / "only", city_entities(300), {"mlp.1": 0.5}, "cities", headline="mlp.1")
    assert len(write_figures(Run(only))) == 4


@pytest.mark.parametrize(("number", "least"), [(50, 3.0), (600, 2.5)])
def test_few_dots_are_large_enough_to_see(tmp_path, number, least):
    """Diameters in pixels of the PNG: ten dots of two pixels are lost on a map."""
    results = Run(write_run(tmp_path / "run", city_entities(number), QUALITY, "cities"))
    for axes in place_map(results).axes:
        assert np.sqrt(axes.collections[0].get_sizes()[0]) * 200 / 72 > least


def test_a_long_group_s_name_is_cut_and_covers_no_continent(place_run):
    entities = place_run.read_entities()
    long = "Asia and all that lies to the east of the Ural mountains, " * 3
    entities["group_continent"] = entities["group_continent"].replace({"Asia": long, "Africa": "", "Europe": "_europe"})
    place_run.write_entities(entities)
    figure = place_map(Run(place_run))
    (legend,) = figure.legends
    names = {text.get_text().strip() for text in legend.get_texts()}
    assert {"(none)", "_europe", "Oceania"} < names and max(map(len, names)) == 40
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert all(box.y1 <= axes.get_window_extent().y0 for axes in figure.axes)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e30, 1e6, 1e-30])
def test_plain_numbers_of_any_size_are_drawn_inside_the_frame(tmp_path, scale):
    rng = np.random.default_rng(0)
    entities = city_entities(100).drop(columns=["true_latitude", "true_longitude"])
    entities["true_size"] = rng.normal(3, 1, 100) * scale
    entities["true_depth"] = -rng.normal(3, 1, 100) * scale
    run = write_run(tmp_path / "run", entities, QUALITY, "plain")
    figure = predicted_against_true(Run(run))
    assert len(write_figures(Run(run))) == 4
    for axes in figure.axes:
        (low, high), offsets = axes.get_xlim(), np.asarray(axes.collections[0].get_offsets())
        assert low < high and ((offsets >= low) & (offsets <= high)).mean() > 0.9
    assert inside(figure)


def test_points_outside_the_axes_are_counted(time_run):
    entities = time_run.read_entities()
    entities.loc[entities.index[entities["split"] == "test"][0], "true_release_date"] = -3000.0
    time_run.write_entities(entities)
    assert "Dashed: a perfect prediction. 1 point outside the frame." in texts(predicted_against_true(Run(time_run)))


def test_map_draws_every_prediction_in_its_true_continent_s_colour(place_run):
    entities, predictions = place_run.read_entities(), place_run.read_predictions()
    figure = place_map(Run(place_run))
    main, truth, embed = figure.axes
    test = entities[entities["split"] == "test"].merge(predictions[predictions["layer"] == "4"], on="row")
    order = list(test["group_continent"].value_counts().index)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == order

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


@pytest.mark.slow
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


@pytest.mark.slow
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
