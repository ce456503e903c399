"""report.html as a parser reads it: the numbers of the files, and text from data as text."""

import re
import resource
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import pytest

from jaxprobe.errors import InputError
from jaxprobe.report.page import render_page, write_report
from jaxprobe.results.results import Run

HOSTILE = "</script></style><img src=x onerror=alert(1)> \"double\" 'single' & \u0645\u062f\u064a\u0646\u0629 🏙️"
VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """Collects tags and visible text; fails on tags that don't match."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.open, self.text, self.rows = [], [], "", []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data
            if {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data


def read(run) -> Page:
    return Page(render_page([Run(run)]))


def test_headline_is_in_words_with_its_baseline(place_run):
    scores = place_run.read_scores().set_index(["layer", "target", "metric"])
    chosen, embed = scores.loc[("4", "mean", "r2")], scores.loc[("embed", "mean", "r2")]
    text = read(place_run).text
    assert f"test R² {chosen['value']:.3f} [{chosen['ci_low']:.3f}, {chosen['ci_high']:.3f}]" in text
    assert f"The token embedding alone reaches R² {embed['value']:.3f}" in text
    assert f"within {scores.loc[('4', 'place', 'error_km_median'), 'value']:,.0f} [" in text
    assert "leave-one-out on the 479 training rows" in text


def test_score_table_holds_every_layer_s_scores(place_run):
    scores = place_run.read_scores().set_index(["layer", "target", "metric"])["value"]
    page = read(place_run)
    table = {row[0]: row for row in page.rows if row and row[0] in ("layer", *"012345", "embed")}
    column = table["layer"].index("Spearman longitude")
    for layer in ("embed", *"012345"):
        assert table[layer][1].startswith(f"{scores[layer, 'mean', 'r2']:.3f}")
        assert table[layer][column] == f"{scores[layer, 'longitude', 'spearman']:.3f}"


def test_page_for_dates_speaks_of_the_target(time_run):
    page = read(time_run)
    assert "reads off the release date of 80 names it never saw" in page.text
    assert "mean absolute error" in page.text


def test_settings_versions_timings_and_attribution_are_shown(place_run):
    text = read(place_run).text
    for part in (
        "probe.seed",
        "0.10.2",
        "12.5 s",
        "total18.2 s",
        "2.00 GiB",
        "0123456789abcdef",
        "GeoNames, CC BY 4.0",
    ):
        assert part in text
    assert "3 names are on both sides of the split." in text


@pytest.mark.parametrize("fixture", ["place_run", "time_run"])
def test_text_from_data_is_never_markup(request, fixture):
    run = request.getfixturevalue(fixture)
    plain = [(tag, sorted(attributes)) for tag, attributes in read(run).tags]
    scores, config = run.read_scores(), run.read_config()
    for column in ("model", "dataset", "prompt"):
        scores[column] = HOSTILE
    run.write_scores(scores)
    config["result"] |= {"model": HOSTILE, "notes": [HOSTILE], "attribution": HOSTILE}
    config["settings"]["prompt"] = HOSTILE
    run.write_config(config)
    entities = run.read_entities()
    entities["text"] = HOSTILE + entities["text"] * 60
    run.write_entities(entities)
    hostile = read(run)
    assert [(tag, sorted(attributes)) for tag, attributes in hostile.tags] == plain
    assert hostile.text.count(HOSTILE) >= 4


def test_notes_stand_in_the_opening_and_every_word_is_explained(place_run):
    page = read(place_run)
    assert page.text.index("3 names are on both sides") < page.text.index("Where the names fall")
    explained = page.text[page.text.index("Words used here") :]
    for word in ("probe", "embed", "95 % interval", "chosen layer", "alpha", "Spearman", "permuted targets"):
        assert word in explained
    for jargon in ("nominal", "selectivity", "re-centred", "headline layer"):
        assert jargon not in page.text.lower()


def test_scripts_and_styles_are_allowed_by_their_hashes_alone(place_run):
    html = render_page([Run(place_run)])
    (policy,) = [attrs["content"] for tag, attrs in Page(html).tags if "http-equiv" in attrs]
    sources = {part.split()[0]: part.split()[1:] for part in policy.split(";")}
    assert sources["default-src"] == ["'none'"]
    assert "'unsafe-inline'" not in sources["script-src"] + sources["style-src"]
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        elements = re.findall(rf"<{tag}(?: id=\"\w+\")?>(.*?)</{tag}>", html, re.DOTALL)
        digests = {f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in elements}
        assert digests and digests <= set(sources[directive])


@pytest.mark.slow
def test_report_and_figures_are_written_into_the_run(place_run, time_run, tmp_path):
    assert write_report(place_run) == place_run.report_path
    assert place_run.report_path.read_text(encoding="utf-8") == render_page([Run(place_run)])
    assert (place_run.figures_path / "map.png").is_file()
    assert write_report(place_run, time_run, path=tmp_path / "both.html") == tmp_path / "both.html"
    page = Page((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert [row[1] for row in page.rows if row[0] == "tiny"] == ["cities", "art"]


@pytest.mark.parametrize("name", ["scores.csv", "probes.safetensors", "config.json", "notes.txt"])
def test_a_file_that_is_no_page_is_never_replaced(place_run, name):
    path = place_run.path / name
    if not path.exists():
        path.write_text("mine")
    before = path.read_bytes()
    with pytest.raises(InputError, match="is no page"):
        write_report(place_run, path=path)
    assert path.read_bytes() == before and not place_run.figures_path.exists()


def test_a_folder_or_a_place_below_a_file_is_refused(place_run, tmp_path):
    for path, words in ((tmp_path, "is a folder"), (place_run.config_path / "page.html", "below .* which is a file")):
        with pytest.raises(InputError, match=words):
            write_report(place_run, path=path)
    assert not place_run.figures_path.exists()


def test_with_a_path_only_the_page_is_written_and_again(place_run, tmp_path):
    before = sorted(place_run.path.rglob("*"))
    for _ in range(2):
        assert write_report(place_run, path=tmp_path / "elsewhere/page.html").is_file()
    assert sorted(place_run.path.rglob("*")) == before


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_nothing_half_written(place_run):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = sorted(place_run.path.rglob("*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # no file may be larger: a PNG is, an SVG too
    try:
        with pytest.raises(InputError, match=f"jaxprobe report {place_run.path}"):
            write_report(place_run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = [path for path in sorted(place_run.path.rglob("*")) if path not in before and path.is_file()]
    assert left == []
    assert write_report(place_run).is_file()


def test_every_unusable_run_is_named_at_once(place_run, time_run):
    place_run.predictions_path.unlink()
    time_run.config_path.unlink()
    with pytest.raises(InputError) as caught:
        write_report(place_run, time_run)
    assert str(place_run.predictions_path) in str(caught.value)
    assert str(time_run.config_path) in str(caught.value)
    assert not place_run.report_path.exists()
