"""One page over several runs: their scores side by side, beside controls, with a link to the report of each."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from jaxprobe.host.paths import AnyPath, replacing
from jaxprobe.report.phrases import layer_title, number, prompt_in_words
from jaxprobe.results.folder import RunDirectory
from jaxprobe.results.results import Run, Score

STYLE = (Path(__file__).with_name("assets") / "page.css").read_text(encoding="utf-8")
_RESAMPLED = ("rows", "permutations")
HEADS = ("table", "model", "prompt", "layer", "test score", "embed", "spelling", "majority", "permuted")
CONTROLS = ("embed", "ngrams", "majority", "permuted")
WORDS = (
    "Brackets: 95 % interval over test rows. The layer was chosen on the training rows, never by a test score. Embed: "
    "the embedding of the token that is read, before any block. Spelling: a probe of the name's characters, without a "
    "model. Majority: of class labels, the most frequent class. Permuted: targets exchanged among the rows, with the "
    "share of permutations that are read as well as the true ones. A dash: not computed."
)


def overview_row(results: Run) -> list[str]:
    """A run in the columns HEADS, as text."""
    score = results.score(results.headline_layer, results.metric)
    found = {name: _control(results, name) for name in CONTROLS}
    found["embed"] = found["embed"] or results.score("embed", results.metric)
    if results.headline_layer == "embed":
        found["embed"] = score
    cells = ["–" if found[name] is None else number(found[name].value, 3) for name in CONTROLS]
    p_value = _control(results, "permuted", "p_value")
    if p_value is not None:
        cells[-1] += f", p {number(p_value.value, 3)}"
    name = "accuracy" if results.label else "R²"
    interval = f" [{number(score.ci_low, 3)}, {number(score.ci_high, 3)}]" if score.has_interval else ""
    tested = f"{name} {number(score.value, 3)}{interval}"
    names = [results.dataset, results.model, prompt_in_words(results.wording)]
    return [*names, layer_title(results.headline_layer), tested, *cells]


def _control(results: Run, control: str, metric: str | None = None) -> Score | None:
    frame = results.controls
    if frame is None:
        return None
    wanted = {"control": control, "metric": metric or results.metric, "target": "mean", "split": "test"}
    rows = frame[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1) & frame["resampled"].isin(_RESAMPLED)]
    if rows.empty:
        return None
    row = rows.iloc[0]
    return Score(float(row["value"]), float(row["ci_low"]), float(row["ci_high"]))


def write_overview(path: AnyPath, runs: Sequence[RunDirectory]) -> None:
    """Writes the page; of a run that is not finished it says so. The folders lie beside the page."""
    with replacing(path) as temporary:
        temporary.write_text(render_overview(runs), encoding="utf-8")


def render_overview(runs: Sequence[RunDirectory]) -> str:
    """The page's HTML, a row for each run."""
    lines = []
    for run in runs:
        name = escape(run.path.name)
        if run.is_complete:
            link = f'<a href="{escape(quote(run.path.name))}/report.html">{name}</a>'
            cells = "".join(f"<td>{escape(cell)}</td>" for cell in overview_row(Run(run)))
        else:
            link, cells = name, f'<td colspan="{len(HEADS)}">not finished</td>'
        lines.append(f"<tr>{cells}<td>{link}</td></tr>")
    head = "".join(f'<th scope="col">{name}</th>' for name in (*HEADS, "report"))
    digest = b64encode(sha256(STYLE.encode()).digest()).decode()
    title = f"{len(runs)} runs side by side"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-{digest}'\">"
        f"<title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="quiet">{WORDS}</p></main></body></html>\n'
    )
