"""Numbers in words, the same in figures and pages."""

import math
from collections.abc import Sequence

from jaxprobe.html import decimal_text
from jaxprobe.results.results import Run, Score
from jaxprobe.sites import find_site


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 place", "2,000 places", "3 entities"."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun if number == 1 else plural}"


def number(value: float, digits: int) -> str:
    """A number with this many decimals, fewer where it is large, and a proper minus; a dash for what is none."""
    return decimal_text(value, digits).replace("-", "−") if math.isfinite(value) else "–"


def with_interval(score: Score) -> str:
    """A score and its interval with three decimals: "R² 0.612 [0.587, 0.640]"; a dash for what has no score."""
    interval = f" [{number(score.ci_low, 3)}, {number(score.ci_high, 3)}]" if score.has_interval else ""
    return f"R² {number(score.value, 3)}{interval}"


def layer_title(layer: str) -> str:
    """A state's name in a sentence: "layer 17", "embed", "final norm", "the MLP's neurons of layer 3"."""
    site = find_site(layer)
    return site.words if site else layer


def site_kind(layer: str) -> str:
    """What kind of site a state is; one that was made elsewhere counts as the stream after a block."""
    site = find_site(layer)
    return site.kind if site else "block"


def describe_headline(results: Run) -> str:
    """The result in one line: the layer, its test R2 with interval, the embed state's, and the typical error."""
    headline = results.score(results.headline_layer, "r2")
    parts = [f"{layer_title(results.headline_layer).capitalize()}: test {with_interval(headline)}"]
    embed = results.score("embed", "r2")
    if embed is not None and results.headline_layer != "embed":
        parts.append(f"the embed state {with_interval(embed).removeprefix('R² ')}")
    error = results.score(results.headline_layer, "error_km_median", "place")
    if error is not None:
        parts.append(f"median error {error.value:,.0f} km")
    return " · ".join(parts)


def prompt_in_words(prompt: str) -> str:
    """What the model reads: the name alone, or a prompt around it."""
    return "The name alone, no prompt" if prompt in ("", "{}") else f"Prompt: “{prompt}”"


def run_in_words(results: Run) -> str:
    """What tells a run from others on a page: model, table, prompt."""
    return " · ".join((results.model, results.dataset, prompt_in_words(results.wording)))


def with_unit(value: float, unit: str) -> str:
    """A number with three digits or more, and its unit in the plural: "12.3 years", "1,985 years", "0.410"."""
    size = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    text = number(value, max(0, 2 - size)) if size >= -4 else f"{value:.2e}".replace("-", "−")
    return f"{text} {unit}s" if unit else text


def page_title(runs: Sequence[Run]) -> str:
    """What a page about these runs is called."""
    return f"{runs[0].model} · {runs[0].dataset}" if len(runs) == 1 else f"{len(runs)} runs compared"
