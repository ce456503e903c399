"""report.html in a real browser: what is drawn equals the run's files, nothing is fetched, any name stays text."""

import shutil

import numpy as np
import pandas as pd
import pytest

from jaxprobe.report.page import write_report
from tests.invented import HEADLINE, QUALITY, city_entities, work_entities, write_run

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (the test extra)")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs an installed Chromium (Debian: apt-get install chromium)", allow_module_level=True)

pytestmark = pytest.mark.browser
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Each is put into the table as a name; the image would set window.hacked if a name were taken as markup.
STRANGE = [
    '</script><img src=x onerror="window.hacked=1">',
    "\"double\" 'single' `back` &amp; & <b>bold</b> ${1+1} %{x}",
    "عمّان القديمة",
    "🏙️👩‍👩‍👧‍👦 Łódź",
    "a long name " * 41 + "of 500.",
    "__proto__",
]
# The page holds 65,535 steps between the least and the greatest prediction of a target.
HALF_A_STEP = 0.5 / 65534


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    entities = city_entities(600)
    test = entities.index[entities["split"] == "test"]
    entities.loc[test[: len(STRANGE)], "text"] = STRANGE
    entities.loc[test[10:13], "group_country"] = "constructor"
    places = write_run(folder / "places", entities, QUALITY, "cities")
    works = write_run(folder / "works", work_entities(400), QUALITY, "art", "another")
    write_report(places)
    write_report(works, places, path=folder / "both.html")
    return {"places": places, "works": works, "both": folder / "both.html"}


@pytest.fixture
def open_page(browser):
    """Open a file; when the test ends, nothing may have been fetched and no error logged."""
    contexts, problems = [], []

    def open_file(path, width=1280, height=900, **settings):
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append("dialog"))
        page.on("request", lambda request: request.url.startswith("file:") or _fetched(request.url, problems))
        page.goto(f"file://{path}")
        page.wait_for_selector("#main-plot .nsewdrag", state="attached")
        assert page.evaluate("window.hacked") is None
        return page

    yield open_file
    for context in contexts:
        context.close()
    assert problems == []


def _fetched(url, problems):
    if not url.startswith(("data:", "blob:")):
        problems.append(f"request {url}")


def points(page) -> pd.DataFrame:
    """The drawn points: entity's place in the table, x, y, error."""
    trace = page.evaluate("document.getElementById('main-plot').data.find((trace) => trace.meta === 'points')")
    frame = pd.DataFrame(trace["customdata"], columns=["at", "error", "predicted", "error_km"])
    return frame.assign(x=trace["x"], y=trace["y"], at=frame["at"].astype(int)).sort_values("at", ignore_index=True)


def expected(run, layer) -> pd.DataFrame:
    entities = run.read_entities()
    return entities.merge(run.read_predictions().query("layer == @layer"), on="row").sort_values("row")


def steps(run, column) -> float:
    values = run.read_predictions()[column]
    return float(values.max() - values.min()) * HALF_A_STEP + 1e-4  # and the file's own float32


def test_slider_moves_the_points_to_each_layer_s_predictions(runs, open_page):
    run = runs["places"]
    page = open_page(run.report_path)
    page.focus("#layer")
    page.keyboard.press("Home")
    for layer in QUALITY:
        shown, wanted = points(page), expected(run, layer)
        for drawn, column in (("x", "predicted_longitude"), ("y", "predicted_latitude"), ("error", "error_km")):
            np.testing.assert_allclose(shown[drawn], wanted[column], rtol=0, atol=steps(run, column))
        r2 = run.read_scores().query("layer == @layer and target == 'mean' and metric == 'r2'")["value"].item()
        assert f"test R² {r2:.3f} [" in page.text_content("#layer-words")
        page.keyboard.press("ArrowRight")
    assert page.get_attribute("#layer", "aria-valuetext") == "layer 5"


def test_page_opens_at_the_headline_layer_and_plays_from_embed(runs, open_page):
    page = open_page(runs["places"].report_path)
    assert page.evaluate("state.layer") == HEADLINE
    page.focus("#layer")
    page.keyboard.press("Home")
    page.click("#play")
    page.wait_for_function("state.layer === '5' && document.getElementById('play').textContent === 'Play'")


def test_search_finds_paris_and_shows_it(runs, open_page):
    run = runs["places"]
    page = open_page(run.report_path)
    page.fill("#search", "PÄRIS")
    names = page.locator("#entities tbody th button").all_text_contents()
    wanted = [name for name in run.read_entities()["text"] if "paris" in name.lower()]
    assert names == wanted and "Paris" in names
    assert page.text_content("#found") == f"{len(wanted)} of 600 entities"
    paris = expected(run, HEADLINE).query("text == 'Paris'").iloc[0]
    line = page.locator("#entities tbody tr", has=page.get_by_text("Paris", exact=True))
    cells = line.locator("td").all_text_contents()
    assert cells[:2] == ["France", "Europe"]
    assert [float(cell.replace("−", "-")) for cell in cells[2:6]] == pytest.approx(
        [paris[f"{kind}_{name}"] for kind in ("true", "predicted") for name in ("latitude", "longitude")], abs=0.0051
    )
    assert cells[6] == f"{paris['error_km']:,.0f}"
    page.get_by_role("button", name="Paris", exact=True).press("Enter")
    assert f"error {paris['error_km']:,.0f} km" in page.text_content("#selected-words")
    marked = page.evaluate("document.getElementById('main-plot').data.at(-1)")
    assert marked["x"][0] == pytest.approx(paris["true_longitude"], abs=1e-4)
    assert marked["y"][1] == pytest.approx(paris["predicted_latitude"], abs=steps(run, "predicted_latitude"))


def test_table_sorts_by_error_with_training_rows_last(runs, open_page):
    run = runs["places"]
    page = open_page(run.report_path)
    wanted = expected(run, HEADLINE).sort_values("error_km", ascending=False, kind="stable")["text"].tolist()
    page.select_option("#sort", "most")
    assert page.locator("#entities tbody th button").all_text_contents() == wanted[:25]
    page.click("#more")
    rows = page.locator("#entities tbody tr").all_text_contents()
    assert len(rows) == 225
    assert ["training row" in row for row in rows] == [False] * len(wanted) + [True] * (225 - len(wanted))


def hover(page, at):
    """Put the mouse on an entity's point and return the label's text."""
    page.evaluate("document.getElementById('main-plot').scrollIntoView()")
    x, y = page.evaluate(
        """(at) => {
          const plot = document.getElementById("main-plot");
          const trace = plot.data.find((trace) => trace.meta === "points");
          const i = trace.customdata.findIndex((point) => point[0] === at);
          const box = plot.querySelector(".nsewdrag").getBoundingClientRect();
          const { xaxis, yaxis } = plot._fullLayout;
          return [box.left + xaxis.d2p(trace.x[i]), box.top + yaxis.d2p(trace.y[i])];
        }""",
        at,
    )
    page.mouse.move(x - 1, y)
    page.mouse.move(x, y)
    page.wait_for_selector("#main-plot .hoverlayer .hovertext", state="attached")
    return page.text_content("#main-plot .hoverlayer .hovertext")


def lonely(frame: pd.DataFrame) -> pd.Series:
    """The row whose prediction is farthest from any other, so that the mouse meets it alone."""
    places = frame[["predicted_longitude", "predicted_latitude"]].to_numpy()
    inside = (np.abs(places[:, 0]) < 170) & (np.abs(places[:, 1] - 10) < 60)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(len(places), np.inf))
    return frame.iloc[int(np.argmax(np.where(inside, distance.min(axis=1), -1)))]


def test_hover_shows_name_truth_prediction_and_error(runs, open_page):
    run = runs["places"]
    page = open_page(run.report_path)
    row = lonely(expected(run, HEADLINE))
    text = hover(page, int(row["row"]))
    number = lambda value: f"{value:.2f}".replace("-", "−")
    assert row["text"] in text and row["group_continent"] in text
    assert f"true {number(row['true_latitude'])}, {number(row['true_longitude'])}" in text
    assert f"error {row['error_km']:,.0f} km" in text
    shown = text.split("predicted ")[1].split("error")[0].replace("−", "-").split(", ")
    # Two decimals, and the page's own step.
    wanted = [row["predicted_latitude"], row["predicted_longitude"]]
    assert [float(value) for value in shown] == pytest.approx(wanted, abs=0.005 + steps(run, "predicted_longitude"))


def test_strange_names_stay_whole_and_are_never_markup(runs, open_page):
    run = runs["places"]
    page = open_page(run.report_path)
    page.check("#only-test")
    names = page.locator("#entities tbody th button").all_text_contents()
    assert names[: len(STRANGE)] == STRANGE
    assert page.locator("#entities img, #main-plot img").count() == 0
    rows = run.read_entities().query("split == 'test'")["row"].tolist()
    # A group called like a property that every object has is "other" as any rare one.
    page.select_option("#colour", "country")
    trace = page.evaluate("document.getElementById('main-plot').data.find((trace) => trace.meta === 'points')")
    assert all(str(colour).startswith("#") for colour in trace["marker"]["color"])
    # Drawn alone, so that the mouse meets it. The second name holds a tag that Plotly knows.
    page.evaluate("(at) => { shownRows(run()).fill(at); delete run().cache.hover; drawMain(); }", rows[1])
    assert STRANGE[1] in hover(page, rows[1]).replace("\u2068", "").replace("\u2069", "")
    page.fill("#search", "")
    page.select_option("#sort", "name")
    assert page.evaluate("table().groups.country.labels").count("constructor") == 1


def test_error_by_group_is_the_median_of_the_test_rows(runs, open_page):
    run = runs["places"]
    page = open_page(run.report_path)
    page.select_option("#group", "continent")
    bars = page.evaluate("errorsByGroup(run(), 'continent')")
    quartiles = expected(run, HEADLINE).groupby("group_continent")["error_km"].quantile([0.25, 0.5, 0.75]).unstack()
    for bar in bars:
        np.testing.assert_allclose([bar["low"], bar["median"], bar["high"]], quartiles.loc[bar["label"]], rtol=1e-6)
    assert len(bars) == len(quartiles)
    drawn = page.evaluate("document.getElementById('group-plot').data[0].x")
    assert drawn == sorted(bar["median"] for bar in bars)


def test_colours_and_legend_follow_the_choice(runs, open_page):
    run = runs["places"]
    page = open_page(run.report_path)
    everything = points(page)
    asia = set(run.read_entities().query("group_continent == 'Asia'")["row"])
    page.get_by_role("button", name="Asia", exact=True).click()
    assert set(points(page)["at"]) == set(everything["at"]) - asia
    page.select_option("#colour", ":error")
    assert set(points(page)["at"]) == set(everything["at"])
    trace = page.evaluate("document.getElementById('main-plot').data.find((trace) => trace.meta === 'points')")
    assert trace["marker"]["color"] == [point[1] for point in trace["customdata"]]
    assert page.locator("#legend button").count() == 0


@pytest.mark.parametrize("which", ["places", "both"])
def test_nothing_overflows_sideways(runs, open_page, which):
    page = open_page(runs["both"] if which == "both" else runs["places"].report_path, width=1920)
    for width in (1920, 1280, 768, 390, 320):
        page.set_viewport_size({"width": width, "height": 844})
        # The plots are drawn anew a moment after the last change of size.
        page.wait_for_function("document.querySelector('#main-plot .main-svg').clientWidth <= innerWidth")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        plot = page.locator("#main-plot .main-svg").first.bounding_box()
        assert plot["x"] >= 0 and plot["x"] + plot["width"] <= width


def test_dark_and_light_differ_and_paper_is_white(runs, open_page):
    backgrounds = {}
    for scheme in ("light", "dark"):
        page = open_page(runs["places"].report_path, color_scheme=scheme)
        backgrounds[scheme] = page.evaluate("document.getElementById('main-plot').layout.paper_bgcolor")
    assert backgrounds == {"light": "#ffffff", "dark": "#14171c"}
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("document.getElementById('main-plot').layout.paper_bgcolor") == "#ffffff"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.getElementById('main-plot').layout.paper_bgcolor") == "#14171c"


def test_several_runs_share_a_page(runs, open_page):
    page = open_page(runs["both"])
    works, places = runs["works"], runs["places"]
    wanted = expected(works, HEADLINE)
    shown = points(page)
    np.testing.assert_allclose(shown["x"], wanted["true_release_date"], rtol=1e-6)
    column = "predicted_release_date"
    np.testing.assert_allclose(shown["y"], wanted[column], rtol=0, atol=steps(works, column))
    error = (wanted["true_release_date"] - wanted[column]).abs()
    np.testing.assert_allclose(shown["error"], error, rtol=0, atol=2 * steps(works, column))
    assert "the release date of 80 names" in page.inner_text("main")
    page.select_option("#run", "1")
    np.testing.assert_allclose(
        points(page)["y"],
        expected(places, HEADLINE)["predicted_latitude"],
        rtol=0,
        atol=steps(places, "predicted_latitude"),
    )
    assert "the release date of 80 names" not in page.inner_text("main")
    assert page.text_content("#main-title") == "Where the names fall"
    drawn = page.evaluate("document.getElementById('score-plot').data.map((trace) => trace.text?.[0] ?? '')")
    assert sum("another" in text for text in drawn) == sum("tiny" in text for text in drawn) > 0
    key = page.locator("#score-key span:not(.dot)").all_text_contents()
    assert key == ["another · art · The name alone, no prompt", "tiny · cities · The name alone, no prompt"]


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory):
    """Some layers of a deep model, one of them far worse than the mean, and an interval that leaves out its score."""
    layers = ("embed", "0", "12", "13", "29", "final_norm")
    quality = dict(zip(layers, (0.3, 0.4, 0.5, 0.6, 0.8, 0.7), strict=True))
    run = write_run(tmp_path_factory.mktemp("odd") / "run", city_entities(300), quality, "cities", headline="29")
    scores = run.read_scores()
    for layer, values in {"embed": (0.2, 0.25, 0.3), "12": (-750.0, -3613.0, 0.51), "13": (-1e53, -1e54, -2)}.items():
        chosen = (scores["layer"] == layer) & (scores["metric"] == "r2")
        scores.loc[chosen, ["value", "ci_low", "ci_high"]] = values
    run.write_scores(scores)
    predictions = run.read_predictions()
    predictions.loc[predictions.index[predictions["layer"] == "29"][:3], "predicted_longitude"] = 200.0
    run.write_predictions(predictions)
    write_report(run)
    return run


def test_every_layer_is_on_the_axis_and_what_is_below_it_is_marked(odd_run, open_page):
    page = open_page(odd_run.report_path)
    axis, vertical, traces = page.evaluate(
        """(() => { const plot = document.getElementById("score-plot");
        const traces = plot.data.map((trace) => [trace.marker?.symbol ?? "", Array.from(trace.x), Array.from(trace.y)]);
        return [plot.layout.xaxis, plot.layout.yaxis.range, traces]; })()"""
    )
    drawn = {x for _, xs, _ in traces for x in xs}
    assert drawn == {-1, 0, 12, 13, 29, 30} and axis["range"][0] < -1 and axis["range"][1] > 30
    assert {"embed", "0", "12", "29", "norm"} <= set(axis["ticktext"])
    assert -1.2 < vertical[0] < -1 and 0.8 < vertical[1] < 1.05
    by_symbol = {symbol: (x, y) for symbol, x, y in traces if symbol}
    assert by_symbol["triangle-down"] == ([12, 13], [vertical[0]] * 2)
    assert by_symbol["line-ew-open"] == ([-1, -1], [0.25, 0.3])
    words = "2 of 6 states lie below the axis (triangles), the least −1.00e+53 at layer 13."
    assert page.text_content("#score-below") == words
    assert "e+53" in page.text_content("main") and "000,000,000" not in page.text_content("main")


def test_sites_inside_of_blocks_are_read_by_name(tmp_path, open_page):
    quality = {"embed": 0.2, "0": 0.4, "mlp.1": 0.7, "1": 0.6}
    run = write_run(tmp_path / "run", city_entities(100), quality, "cities", headline="mlp.1")
    write_report(run)
    page = open_page(run.report_path)
    assert page.text_content("#layer-words").startswith("the MLP's neurons of layer 1 (chosen on the training rows)")
    traces = page.evaluate(
        "document.getElementById('score-plot').data.map((trace) => [trace.line?.color ?? '', Array.from(trace.x)])"
    )
    ticks = page.evaluate("document.getElementById('score-plot').layout.xaxis.ticktext")
    assert ticks == ["embed", "0", "1"]
    assert ["#CC79A7", [0.75]] in traces and page.text_content("#score-key") == "the MLP's neurons"


def test_points_outside_of_the_frame_are_counted(odd_run, open_page):
    page = open_page(odd_run.report_path)
    assert page.text_content("#outside") == "3 points lie outside of the frame."


def test_the_toolbar_covers_no_bar(runs, open_page):
    page = open_page(runs["places"].report_path)
    page.locator("#group-plot").scroll_into_view_if_needed()
    page.locator("#group-plot .nsewdrag").first.hover(force=True)
    toolbar = page.locator("#group-plot .modebar").bounding_box()
    first = page.locator("#group-plot .bars .point").last.bounding_box()
    assert toolbar["y"] + toolbar["height"] <= first["y"]


@pytest.mark.parametrize("scale", [1e30, 1e6, 1e-3, 1e-30])
def test_plain_numbers_of_any_size_are_told_apart(tmp_path, open_page, scale):
    entities = city_entities(100).drop(columns=["true_latitude", "true_longitude"])
    entities["true_size"] = np.random.default_rng(0).normal(3, 1, 100) * scale
    run = write_run(tmp_path / "run", entities, QUALITY, "plain")
    write_report(run)
    page = open_page(run.report_path)
    cells = page.locator("#entities tbody td:nth-child(4)").all_text_contents()
    shown = np.array([float(cell.replace("−", "-").replace(",", "")) for cell in cells])
    np.testing.assert_allclose(shown, entities["true_size"][: len(shown)], rtol=0, atol=0.002 * scale)


def test_every_control_is_reached_by_keyboard_and_has_a_name(runs, open_page):
    page = open_page(runs["places"].report_path)
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"layer", "play", "colour", "show-true", "group", "search", "sort", "only-test"} <= reached
    unnamed = page.evaluate(
        "Array.from(document.querySelectorAll('input, select')).filter((e) => !e.labels.length).map((e) => e.id)"
    )
    assert unnamed == []
