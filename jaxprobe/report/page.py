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
from jaxprobe.host.paths import AnyPath, as_path, check_out, replacing
from jaxprobe.report import sections
from jaxprobe.report.class_figures import write_class_figures
from jaxprobe.report.class_page import render_class_page
from jaxprobe.report.control_section import control_table
from jaxprobe.report.figures import write_figures
from jaxprobe.report.payload import encode_runs
from jaxprobe.report.phrases import page_title
from jaxprobe.report.use_section import use_section
from jaxprobe.results.folder import RunDirectory
from jaxprobe.results.results import Run

PAGE_START = b"<!doctype html>"
ASSETS = Path(__file__).with_name("assets")


def write_report(run: RunDirectory, *others: RunDirectory, path: AnyPath | None = None) -> AnyPath:
    """Write a page for one run, or for several side by side; returns its path.

    The page is below 15 MB for 40,000 entities at 32 layers (5 MB of it is Plotly); where runs are larger, a random
    sample of the test rows is drawn, and the page says so.

    Args:
      run: the run that is shown first.
      others: further runs; the page has a choice of run, and one plot of R2 by layer for all.
      path: where the page goes, and all that is written then. By default report.html of the first run, whose figures
        are written anew as well.
    Raises:
      InputError: a run's files are missing, malformed, or don't belong together; ``path`` can't be written, or is a
        file that is no page.
    """
    if path is not None:
        path = as_path(path)
        check_page(path)
    runs: list[Run] = []
    problems: list[str] = []
    for directory in (run, *others):
        try:
            results = Run(directory)
            results.check_together()
            runs.append(results)
        except InputError as error:
            problems += error.problems
    labelled = [results for results in runs if results.label]
    if labelled and len(labelled) < len(runs):
        problems.append(
            f"{labelled[0].path} is a run on class labels, and others are on numbers. Report on each kind by itself."
        )
    if problems:
        raise InputError(*problems)
    draw, render = (write_class_figures, render_class_page) if labelled else (write_figures, render_page)
    try:
        if path is None:
            path = run.report_path
            draw(runs[0])
        with replacing(path) as temporary:
            temporary.write_text(render(runs), encoding="utf-8")
    except OSError as error:  # a full disk, or a run that may only be read
        raise InputError(
            f"The report of {run.path} can't be written: {error.filename or path}: {error.strerror or error}. Make "
            f"room there and give `jaxprobe report {run.path}`, or name a page elsewhere with --out."
        ) from error
    return path


def check_page(path: AnyPath) -> None:
    """Refuses a path that can't be written, or whose file is something else: scores, probes, someone's notes."""
    check_out(path, file=True)
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(PAGE_START))
        if start.lower() != PAGE_START:
            raise InputError(f"{path} is there and is no page, so it is not replaced. Name another file with --out.")


def render_page(runs: Sequence[Run]) -> str:
    """The page's HTML, for the runs given; the first is shown first."""
    # A "<" in a JSON string may as well be written as its escape; then no name can close the script element.
    data = json.dumps(encode_runs(runs), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    first = runs[0]
    style, plotly = _asset("page.css"), get_plotlyjs()
    script = "\n".join(path.read_text(encoding="utf-8") for path in sorted(ASSETS.glob("*.js")))
    return Template(_asset("page.html")).substitute(
        title=escape(page_title(runs)),
        style=style,
        # Plotly adds the styles of maps that this page has none of, unless an element with its id is there.
        style_id="".join(re.findall(r'getElementById\("([0-9a-f]{64})"\)', plotly)[:1]),
        style_hashes=_hashes(style, ""),
        script_hashes=_hashes(plotly, script),
        opening=sections.opening(runs, page_title(runs)),
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


def _for_each(runs: Sequence[Run], section: Callable[[Run], str]) -> str:
    """A section of every run; the page's script shows that of the chosen one."""
    return "".join(f'<div data-run="{index}">{section(results)}</div>' for index, results in enumerate(runs))


def _hashes(*elements: str) -> str:
    """Sources of a content security policy that allow the inline elements with these texts."""
    digests = (sha256(text.encode()).digest() for text in elements)
    return " ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in digests)


def _controls(results: Run) -> str:
    table = control_table(results)
    beside = f"<section><h2>Beside its controls</h2>{table}</section>" if table else ""
    return beside + use_section(results)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
