"""report.html: one self-contained page that opens from disk and asks no network for anything."""

import json
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from string import Template

from plotly.offline import get_plotlyjs

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, as_path, replacing
from jaxprobe.report import sections
from jaxprobe.report.control_section import control_table
from jaxprobe.report.figures import write_figures
from jaxprobe.report.payload import encode_runs
from jaxprobe.results.folder import RunDirectory
from jaxprobe.results.results import Run

ASSETS = Path(__file__).with_name("assets")


def write_report(run: RunDirectory, *others: RunDirectory, path: AnyPath | None = None) -> AnyPath:
    """Write a page for one run, or for several side by side; returns its path.

    Each run's figures folder is written anew. The page is below 15 MB for 40,000 entities at 32 layers (5 MB of it is
    Plotly); where runs are larger, a random sample of the test rows is drawn, and the page says so.

    Args:
      run: the run that is shown first.
      others: further runs; the page has a choice of run, and one plot of R2 by layer for all.
      path: where the page goes; by default report.html of the first run.
    Raises:
      InputError: a run's files are missing, malformed, or don't belong together.
    """
    runs, problems = [], []
    for directory in (run, *others):
        try:
            results = Run(directory)
            results.check_together()
            runs.append(results)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    for results in runs:
        write_figures(results)
    path = as_path(path or run.report_path)
    with replacing(path) as temporary:
        temporary.write_text(render_page(runs), encoding="utf-8")
    return path


def render_page(runs: Sequence[Run]) -> str:
    """The page's HTML, for the runs given; the first is shown first."""
    # A "<" in a JSON string may as well be written as its escape; then no name can close the script element.
    data = json.dumps(encode_runs(runs), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    first = runs[0]
    style, plotly = _asset("page.css"), get_plotlyjs()
    script = "\n".join(path.read_text(encoding="utf-8") for path in sorted(ASSETS.glob("*.js")))
    return Template(_asset("page.html")).substitute(
        title=escape(_title(runs)),
        style=style,
        # Plotly adds the styles of maps that this page has none of, unless an element with its id is there.
        style_id="".join(re.findall(r'getElementById\("([0-9a-f]{64})"\)', plotly)[:1]),
        style_hashes=_hashes(style, ""),
        script_hashes=_hashes(plotly, script),
        opening=sections.opening(runs, _title(runs)),
        main_title="Where the names fall" if first.is_place else "True and predicted",
        controls=_for_each(runs, _controls),
        scores=_for_each(runs, sections.score_table),
        glossary=sections.glossary(),
        colophon=_for_each(runs, sections.colophon),
        attribution=escape(" · ".join(dict.fromkeys(results.attribution for results in runs if results.attribution))),
        data=data.replace("<", "\\u003c"),
        plotly=plotly,
        script=script,
    )


def _title(runs: Sequence[Run]) -> str:
    return f"{runs[0].model} · {runs[0].dataset}" if len(runs) == 1 else f"{len(runs)} runs compared"


def _for_each(runs: Sequence[Run], section: Callable[[Run], str]) -> str:
    """A section of every run; the page's script shows that of the chosen one."""
    return "".join(f'<div data-run="{index}">{section(results)}</div>' for index, results in enumerate(runs))


def _hashes(*elements: str) -> str:
    """Sources of a content security policy that allow the inline elements with these texts."""
    digests = (sha256(text.encode()).digest() for text in elements)
    return " ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in digests)


def _controls(results: Run) -> str:
    table = control_table(results)
    return f"<section><h2>Beside its controls</h2>{table}</section>" if table else ""


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
