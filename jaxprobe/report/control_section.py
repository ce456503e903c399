"""The probe beside its controls: what a bare R2 does not rule out, in words and as a table."""

import math
from html import escape

import pandas as pd

from jaxprobe.report.phrases import with_interval
from jaxprobe.results.results import Run, Score


def controls_in_words(results: Run) -> list[str]:
    """Sentences for the headline: what is reached without the model's layers, better than the probe or not."""
    sentences = []
    names = {"embed": "The token embedding alone", "ngrams": "The spelling alone, without a model,"}
    for control, name in names.items():
        score = _score(results, control, "r2", "rows")
        if score is not None and not (control == "embed" and results.headline_layer == "embed"):
            verdict = _verdict(_score(results, control, "selectivity"))
            sentences.append(f"{name} reaches {with_interval(score)}{verdict}.")
    return sentences


def _verdict(lead: Score | None) -> str:
    """How the probe's lead over a control stands to its interval."""
    if lead is None or not lead.has_interval:
        return ""
    if lead.ci_low > 0:
        return ", which the probe exceeds"
    return ", more than the probe" if lead.ci_high < 0 else ", and it is open which of the two is higher"


def control_table(results: Run) -> str:
    """Every control with its R2, the probe's lead over it, and a p-value for permuted targets; "" without controls."""
    if results.controls is None:
        return ""
    mean = results.controls[(results.controls["target"] == "mean") & (results.controls["split"] == "test")]
    rows = []
    for (control, resampled), part in mean.groupby(["control", "resampled"], sort=False):
        values = part.set_index("metric")
        cells = [_cell(values, "r2"), _cell(values, "selectivity"), _p_value(values)]
        name, why = describe_control(control, resampled)
        if resampled in results.groups and pd.isna(values.loc["r2", "ci_low"]):
            tested = results.entities.loc[results.entities["split"] == "test", f"group_{resampled}"].nunique()
            why += f"; no interval: too few groups ({tested}), or resamples without a score"
        numbers = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(name)}<br><small>{escape(why)}</small></th>{numbers}</tr>')
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("", "test R²", "probe less this", "p"))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Controls"><table class="numbers controlled">'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="quiet">Mean over targets. Brackets: 95 % interval over test rows, or over whole groups where the '
        "row says so; for permuted targets the middle 95 % of permutations. p: the share of permutations that are "
        "read as well as the true targets, these counted in.</p>"
    )


def describe_control(control: str, resampled: str) -> tuple[str, str]:
    """A control's name for people, and what it shows; the names are those of `jaxprobe.experiments.controls`."""
    if control == "none" and resampled != "rows":
        return f"The probe, whole groups of {_spaced(resampled)} resampled", "how far the score hangs on a few groups"
    fixed = {
        "none": ("The probe", "of the chosen layer"),
        "chance": ("Chance", "a class named at random"),
        "majority": ("The majority", "the class that most training rows have, always"),
        "embed": ("The token embedding", "what the token alone tells"),
        "ngrams": ("The name's spelling", "ridge on its characters, without a model"),
        "random_weights": ("The same layer with random weights", "what the architecture keeps of the tokens"),
        "permuted": ("Targets permuted over all rows", "what is left when they mean nothing"),
    }
    if control in fixed:
        return fixed[control]
    for prefix, name, why in (
        ("group_mean_", "The mean of its {}", "what the group alone tells, given the true group"),
        ("within_", "Inside each {}", "the probe and the truth, both less their group's mean; whole groups resampled"),
        ("permuted_", "Targets exchanged between groups of {}", "what is left when only the group is known"),
    ):
        if control.startswith(prefix):
            return name.format(_spaced(control.removeprefix(prefix))), why
    return control, ""


def _score(results: Run, control: str, metric: str, resampled: str = "rows") -> Score | None:
    if results.controls is None:
        return None
    rows = results.controls.query(
        "control == @control and metric == @metric and resampled == @resampled and target == 'mean' and split == 'test'"
    )
    if rows.empty:
        return None
    row = rows.iloc[0]
    return Score(float(row["value"]), float(row["ci_low"]), float(row["ci_high"]))


def _cell(values: pd.DataFrame, metric: str) -> str:
    if metric not in values.index:
        return "–"
    row = values.loc[metric]
    return with_interval(Score(row["value"], row["ci_low"], row["ci_high"])).removeprefix("R² ")


def _p_value(values: pd.DataFrame) -> str:
    if "p_value" not in values.index:
        return "–"
    p_value = values.loc["p_value", "value"]
    if pd.isna(p_value):
        return "none: too few groups" if math.isfinite(values.loc["selectivity", "value"]) else "none: no score"
    return f"{p_value:.2g}"


def _spaced(name: str) -> str:
    return name.replace("_", " ")
