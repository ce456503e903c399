"""The parts of a report that are plain HTML: headline, score table, settings. Every text from data is escaped."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np

from jaxprobe.report.results import RunResults
from jaxprobe.report.words import count, layer_title, with_interval, with_unit


def headline(results: RunResults) -> str:
    """The result in words, with what it was chosen by and what it stands beside."""
    score, embed = results.score(results.headline_layer, "r2"), results.score("embed", "r2")
    splits = results.entities["split"].value_counts()
    what = (
        "where they lie" if results.is_place else " and ".join(target.replace("_", " ") for target in results.targets)
    )
    sentences = [
        f"From the hidden states of <strong>{escape(layer_title(results.headline_layer))}</strong>, a linear probe "
        f"predicts {escape(what)} for {count(int(splits.get('test', 0)), 'name')} it never saw: "
        f"test <strong>{with_interval(score)}</strong>."
    ]
    if embed is not None and results.headline_layer != "embed":
        sentences.append(f"The token embedding alone, the baseline, reaches {with_interval(embed)}.")
    sentences.append(_typical_error(results))
    trained = count(int(splits.get("train", 0)), "training row")
    sentences.append(f"The layer was chosen by leave-one-out on the {trained}, never by a test score.")
    return f'<p class="lead">{" ".join(sentence for sentence in sentences if sentence)}</p>'


def _typical_error(results: RunResults) -> str:
    error = results.score(results.headline_layer, "error_km_median", "place")
    if error is not None:
        interval = f" [{error.ci_low:,.0f}, {error.ci_high:,.0f}]" if error.has_interval else ""
        return f"Half of the predictions are within {error.value:,.0f}{interval} km of the truth."
    errors = [(target, results.score(results.headline_layer, "mae", target)) for target in results.targets]
    parts = [escape(with_unit(error.value, results.unit(target))) for target, error in errors if error]
    return f"The mean absolute error is {' and '.join(parts)}." if parts else ""


def score_table(results: RunResults) -> str:
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


def _score_columns(results: RunResults) -> list[tuple[str, str, int]]:
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
    text = f"{row['value']:,.{digits}f}"
    if np.isfinite(row["ci_low"]) and np.isfinite(row["ci_high"]):
        text += f" <small>[{row['ci_low']:,.{digits}f}, {row['ci_high']:,.{digits}f}]</small>"
    return text.replace("-", "−")


def notes(results: RunResults) -> str:
    """What was noticed while the run went on, one item each."""
    items = "".join(f"<li>{escape(str(note))}</li>" for note in results.result.get("notes", []))
    return f"<h2>Notes</h2><ul>{items}</ul>" if items else ""


def colophon(results: RunResults) -> str:
    """How the run was made: timings, memory, settings, versions."""
    seconds = results.result.get("seconds", {})
    made = {name: f"{value:,.1f} s" for name, value in seconds.items()}
    if seconds:
        made["total"] = f"{sum(seconds.values()):,.1f} s"
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
