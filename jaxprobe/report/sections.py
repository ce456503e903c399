"""The parts of a report that are plain HTML: headline, score table, settings. Every text from data is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from jaxprobe.report.control_section import controls_in_words
from jaxprobe.report.phrases import count, layer_title, number, prompt_in_words, run_in_words, with_interval, with_unit
from jaxprobe.results.results import Run

GLOSSARY = {
    "probe": "A linear map from a hidden state to the targets, fitted with an L2 penalty (ridge) on the training rows.",
    "test R²": "1 less the probe's squared error over that of always answering the test rows' mean: 1 is perfect, 0 is "
    "no better than the mean, and it has no lower end. With several targets: their mean.",
    "95 % interval": "From resampling the test rows (bootstrap) with the probe as it is. It says nothing of another "
    "split, prompt or model.",
    "embed": "The embedding of the name's token that is read, before any block: what that token alone tells.",
    "layer 12": "The residual stream after block 12; the first block is 0.",
    "final norm": "The last block's state after the model's final normalisation.",
    "chosen layer": "The layer of the headline. Errors on the training rows chose it, so its test score is no maximum "
    "over layers.",
    "alpha": "The weight of the L2 penalty, in squared units of the hidden state.",
    "training R²": "R² of the fitted probe on the rows it was fitted on: how far it is above the test R² shows how "
    "much the probe merely remembers.",
    "Spearman": "Rank correlation of true and predicted values: whether the order is right, whatever the scale.",
    "probe less this": "The probe's R² less the control's, on the same resampled rows. Where the interval holds 0, it "
    "is open which of the two is higher.",
    "permuted targets": "The same fit to targets exchanged among the rows: what is left where they mean nothing.",
    "inside a group": "R² of truth and prediction, both less their group's mean: what is told beyond the group.",
}


def opening(runs: Sequence[Run], title: str) -> str:
    """Title and result: a paragraph for one run; for several a table of all, and the choice of the one to look at."""
    if len(runs) == 1:
        (results,) = runs
        about = " · ".join(part for part in (results.model_description, prompt_in_words(results.wording)) if part)
        return f'<p class="quiet">{escape(about)}</p><h1>{escape(title)}</h1>{headline(results)}{notes(results)}'
    options = "".join(f'<option value="{i}">{escape(run_in_words(results))}</option>' for i, results in enumerate(runs))
    paragraphs = "".join(
        f'<div data-run="{i}">{headline(results)}{notes(results)}</div>' for i, results in enumerate(runs)
    )
    return (
        f"<h1>{escape(title)}</h1>{comparison(runs)}"
        f'<div class="controls sticky"><label class="wide">Run <select id="run">{options}</select></label></div>'
        f"{paragraphs}"
    )


def comparison(runs: Sequence[Run]) -> str:
    """One row a run: what was read, the chosen layer, its test R2, the embed state's, and the typical error."""
    rows = []
    for results in runs:
        layer = results.headline_layer
        score, embed = results.score(layer, "r2"), results.score("embed", "r2")
        cells = [results.model, results.dataset, prompt_in_words(results.wording), layer_title(layer)]
        scores = [with_interval(each).removeprefix("R² ") if each else "–" for each in (score, embed)]
        texts = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        numbers = "".join(f'<td class="number">{escape(cell)}</td>' for cell in (*scores, _short_error(results)))
        rows.append(f"<tr>{texts}{numbers}</tr>")
    heads = ("model", "table", "prompt", "layer", "test R²", "embed R²", "typical error")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Runs"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _short_error(results: Run) -> str:
    error = results.score(results.headline_layer, "error_km_median", "place")
    if error is not None:
        return f"median {error.value:,.0f} km"
    errors = [
        (results.unit(target), results.score(results.headline_layer, "mae", target)) for target in results.targets
    ]
    return "mean " + " and ".join(with_unit(error.value, unit) for unit, error in errors if error)


def headline(results: Run) -> str:
    """The result in words, with what it was chosen by and what it stands beside."""
    score, embed = results.score(results.headline_layer, "r2"), results.score("embed", "r2")
    splits = results.entities["split"].value_counts()
    names = count(int(splits.get("test", 0)), "place" if results.is_place else "name")
    targets = " and ".join(results.targets).replace("_", " ")
    what = f"where {names} it never saw lie" if results.is_place else f"the {targets} of {names} it never saw"
    sentences = [
        f"From the hidden states of <strong>{escape(layer_title(results.headline_layer))}</strong>, a linear probe "
        f"reads off {escape(what)}: test <strong>{with_interval(score)}</strong>."
    ]
    sentences.append(_typical_error(results))
    beside = controls_in_words(results)
    if not beside and embed is not None and results.headline_layer != "embed":
        beside = [f"The token embedding alone reaches {with_interval(embed)}."]
    trained = count(int(splits.get("train", 0)), "training row")
    chosen = f"The layer was chosen by {escape(results.chosen_by)} on the {trained}, never by a test score."
    sentences += [*beside, chosen]
    return f'<p class="lead">{" ".join(sentence for sentence in sentences if sentence)}</p>'


def _typical_error(results: Run) -> str:
    error = results.score(results.headline_layer, "error_km_median", "place")
    if error is not None:
        interval = f" [{error.ci_low:,.0f}, {error.ci_high:,.0f}]" if error.has_interval else ""
        return f"Half of the predictions are within {error.value:,.0f}{interval} km of the truth."
    errors = [(target, results.score(results.headline_layer, "mae", target)) for target in results.targets]
    parts = [escape(with_unit(error.value, results.unit(target))) for target, error in errors if error]
    return f"The mean absolute error is {' and '.join(parts)}." if parts else ""


def score_table(results: Run) -> str:
    """Test scores of every layer, training R2 beside them; the headline layer's row is marked."""
    columns = _score_columns(results)
    test = results.scores[results.scores["split"] == "test"].set_index(["target", "metric", "layer"])
    train = results.scores[results.scores["split"] == "train"].set_index(["target", "metric", "layer"])
    rows = []
    for layer in results.layers:
        cells = [f'<th scope="row">{escape(layer)}</th>']
        for target, metric, digits in columns:
            cells.append(f"<td>{_cell(test, (target, metric, layer), digits)}</td>")
        cells.append(f"<td>{_cell(train, ('mean', 'r2', layer), 3)}</td>")
        alpha = test.loc[("mean", "r2", layer), "alpha"]
        cells.append(f"<td>{alpha:.3g}</td>" if np.isfinite(alpha) else "<td>–</td>")
        mark = ' class="chosen"' if layer == results.headline_layer else ""
        rows.append(f"<tr{mark}>{''.join(cells)}</tr>")
    heads = ["layer", *(_column_title(target, metric) for target, metric, _ in columns), "training R²", "alpha"]
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in heads)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Scores by layer"><table class="numbers">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _score_columns(results: Run) -> list[tuple[str, str, int]]:
    """(target, metric, digits) of the columns that the run has test scores for."""
    wanted = [("mean", "r2", 3)]
    wanted += [(target, "r2", 3) for target in results.targets if len(results.targets) > 1]
    wanted += [(target, "spearman", 3) for target in results.targets]
    wanted += [("place", "error_km_median", 0), ("place", "error_km_mean", 0)]
    wanted += [(target, "mae", 2) for target in results.targets]
    return [column for column in wanted if results.score(results.headline_layer, column[1], column[0]) is not None]


def _column_title(target: str, metric: str) -> str:
    names = {"r2": "R²", "spearman": "Spearman", "mae": "mean absolute error"}
    names |= {"error_km_median": "median error, km", "error_km_mean": "mean error, km"}
    return names[metric] if target in ("mean", "place") else f"{names[metric]} {target.replace('_', ' ')}"


def _cell(scores: Any, key: tuple[str, str, str], digits: int) -> str:
    if key not in scores.index or not np.isfinite(scores.loc[key, "value"]):
        return "–"
    row = scores.loc[key]
    text = number(row["value"], digits)
    if np.isfinite(row["ci_low"]) and np.isfinite(row["ci_high"]):
        text += f" <small>[{number(row['ci_low'], digits)}, {number(row['ci_high'], digits)}]</small>"
    return text


def notes(results: Run) -> str:
    """What was noticed of the table, the states or the scores while the run went on, one item each."""
    items = "".join(f"<li>{escape(note)}</li>" for note in results.notes)
    return f'<h2 class="aside">To know before reading on</h2><ul class="notes">{items}</ul>' if items else ""


def glossary() -> str:
    """What the page's words mean, in a sentence each."""
    rows = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in GLOSSARY.items())
    return f'<dl class="glossary">{rows}</dl>'


def colophon(results: Run) -> str:
    """How the run was made: timings, memory, settings, versions."""
    made = {name: f"{value:,.1f} s" for name, value in results.result.get("seconds", {}).items()}
    if peak := results.result.get("peak_memory_bytes"):
        made["peak memory"] = f"{peak / 2**30:.2f} GiB"
    parts = [
        _definitions("Time and memory", made.items()),
        _definitions("Settings", _flat(results.config.get("settings", {}))),
        _definitions("Versions and machine", _flat(results.config.get("versions", {}))),
    ]
    fingerprint = escape(str(results.config.get("fingerprint", "")))
    return f'<div class="columns">{"".join(parts)}</div><p class="quiet">Fingerprint {fingerprint}</p>'


def _definitions(title: str, pairs: Iterable[tuple[str, Any]]) -> str:
    rows = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs)
    return f"<section><h3>{escape(title)}</h3><dl>{rows}</dl></section>" if rows else ""


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, "–" if value is None or value == "" else value))
    return pairs
