"""report.html: one self-contained page that opens from disk and asks no network for anything."""

from base64 import b64encode
from html import escape
from pathlib import Path

from jaxprobe.files import replacing
from jaxprobe.report import sections
from jaxprobe.report.figures import write_figures
from jaxprobe.report.results import RunResults, load_results
from jaxprobe.report.words import prompt_in_words
from jaxprobe.rundir import RunDirectory


def write_report(run: RunDirectory) -> Path:
    """Write the figures and report.html of a run from its files; returns the page's path.

    Raises:
      InputError: the run's files are missing, malformed, or don't belong together.
    """
    results = load_results(run)
    write_figures(results)
    with replacing(run.report_path) as temporary:
        temporary.write_text(_page(results), encoding="utf-8")
    return run.report_path


def _page(results: RunResults) -> str:
    title = f"{results.model} · {results.dataset}"
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    pictures = ["map" if results.is_place else "predicted_against_true", "r2_by_layer"]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
<p class="quiet">{escape(prompt_in_words(results.prompt))}</p>
<h1>{escape(title)}</h1>
{sections.headline(results)}
{"".join(_picture(results, stem) for stem in pictures)}
<h2>Scores on the test rows, by layer</h2>
{sections.score_table(results)}
{sections.notes(results)}
<h2>How it was made</h2>
{sections.colophon(results)}
<p class="quiet">{escape(results.attribution)}</p>
</main>
</body>
</html>
"""


def _picture(results: RunResults, stem: str) -> str:
    data = b64encode((results.run.figures_path / f"{stem}.png").read_bytes()).decode("ascii")
    words = {
        "map": "Predicted places of the test rows, beside the true places and those read from the embedding alone.",
        "predicted_against_true": "Predicted against true values of the test rows.",
        "r2_by_layer": "Test R² at every layer with its 95 % interval; the embed state is the baseline.",
    }
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(words[stem])}">'
        f"<figcaption>{escape(words[stem])} Also figures/{stem}.png and .svg.</figcaption></figure>"
    )
