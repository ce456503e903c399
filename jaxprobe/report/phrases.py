"""Numbers in words, the same in figures and pages."""

import math

from jaxprobe.results.results import Run, Score


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 place", "2,000 places", "3 entities"."""
    plural = noun[:-1] + "ies" if noun.endswith("y") else noun + "s"
    return f"{number:,} {noun if number == 1 else plural}"


def with_interval(score: Score) -> str:
    """A score and its interval with three decimals: "R² 0.612 [0.587, 0.640]"; a dash for what has no score."""
    if math.isnan(score.value):
        return "R² –"
    interval = f" [{score.ci_low:.3f}, {score.ci_high:.3f}]" if score.has_interval else ""
    return f"R² {score.value:.3f}{interval}".replace("-", "−")


def layer_title(layer: str) -> str:
    """A state's name in a sentence: "layer 17", "embed", "final norm"."""
    return {"embed": "embed", "final_norm": "final norm"}.get(layer, f"layer {layer}")


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
    """A number and its unit in the plural: "12.3 years", "0.41 degrees", "3.2"."""
    return f"{value:,.3g} {unit}s" if unit else f"{value:,.3g}"
