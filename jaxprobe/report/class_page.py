"""report.html of runs on class labels: what the probe reads, beside its controls; pictures and tables, no script."""

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxprobe.report.canvas import to_png
from jaxprobe.report.class_figures import (
    accuracy_by_layer,
    calibration_figure,
    confusion_figure,
    control_value,
    curves_figure,
)
from jaxprobe.report.control_section import describe_control
from jaxprobe.report.phrases import count, layer_title, page_title, prompt_in_words
from jaxprobe.report.sections import colophon, notes
from jaxprobe.results.results import Run, Score

STYLE = (Path(__file__).with_name("assets") / "page.css").read_text(encoding="utf-8")
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "log_loss": "log-loss",
    "calibration_error": "calibration error",
}
MOST_CLASSES = 40


def render_class_page(runs: Sequence[Run]) -> str:
    """The page's HTML, a section for each run."""
    title = page_title(runs)
    digest = b64encode(sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
    sections = "".join(_run_section(results) for results in runs)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{sections}</main></body></html>\n"
    )


def _run_section(results: Run) -> str:
    about = " · ".join(part for part in (results.model_description, prompt_in_words(results.wording)) if part)
    parts = [
        f'<p class="quiet">{escape(about)}</p>',
        headline(results),
        _picture(accuracy_by_layer(results), "Test accuracy by layer"),
        _controls(results),
        "<section><h2>Which classes it takes for which</h2>",
        _picture(confusion_figure(results), "Confusion matrix"),
        _classes(results),
        "</section><section><h2>How sure, and how often right</h2>",
        _picture(calibration_figure(results), "Calibration curve"),
        _picture(curves_figure(results), "ROC and precision-recall curves") if len(results.classes) == 2 else "",
        "</section><section><h2>Sure and wrong</h2>",
        _mistakes(results),
        "</section><section><h2>Scores by layer</h2>",
        _scores(results),
        f"</section>{notes(results)}<section><h2>How it was made</h2>{colophon(results)}</section>",
        f'<p class="quiet">{escape(results.attribution)}</p>',
    ]
    return "".join(parts)


def headline(results: Run) -> str:
    """The result in words, beside chance, the majority and what the name's spelling and last token tell."""
    layer = results.headline_layer
    accuracy, balanced = results.score(layer, "accuracy"), results.score(layer, "balanced_accuracy")
    tested = count(int((results.entities["split"] == "test").sum()), "name")
    sentences = [
        f"From the hidden states of <strong>{escape(layer_title(layer))}</strong>, a linear probe names the "
        f"{escape(results.label)} ({len(results.classes)} classes) of {tested} it never saw: test accuracy "
        f"<strong>{_interval(accuracy)}</strong>, balanced over the classes {_interval(balanced)}."
    ]
    beside = [
        f"{name} {value:.3f}"
        for control, name in (
            ("chance", "chance"),
            ("majority", "the majority class"),
            ("embed", "the token embedding alone"),
            ("ngrams", "the spelling alone, without a model,"),
        )
        if (value := control_value(results, control)) is not None and (control, layer) != ("embed", "embed")
    ]
    if beside:
        sentences.append(f"Beside it: {', '.join(beside)}.")
    unproven = [
        name
        for control, name in (("embed", "the token embedding"), ("ngrams", "the spelling"))
        if _reached(results, control)
    ]
    if unproven:
        sentences.append(f"Its lead over {' and '.join(unproven)} is within its interval or none: more is not shown.")
    sentences.append(
        f"The layer was chosen by {escape(results.chosen_by)} on the training rows, never by a test score."
    )
    return f'<p class="lead">{" ".join(sentences)}</p>'


def _reached(results: Run, control: str) -> bool:
    """Whether a control does as well as the probe, within the interval of the difference."""
    if results.controls is None or results.headline_layer == control:
        return False
    frame = results.controls
    rows = frame[(frame["control"] == control) & (frame["metric"] == "selectivity") & (frame["target"] == "mean")]
    return bool(len(rows)) and not rows["ci_low"].iloc[0] > 0


def _interval(score: Score | None) -> str:
    if score is None or not np.isfinite(score.value):
        return "–"
    ends = f" [{score.ci_low:.3f}, {score.ci_high:.3f}]" if score.has_interval else ""
    return f"{score.value:.3f}{ends}".replace("-", "−")


def _picture(figure: Figure, words: str) -> str:
    data = b64encode(to_png(figure)).decode()
    return f'<p><img class="figure" alt="{escape(words)}" src="data:image/png;base64,{data}"></p>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], chosen: int = -1) -> str:
    """A table of escaped text; the first cell of a row is its head."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(
        f"<tr{' class=chosen' if number == chosen else ''}>"
        + f'<th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for number, row in enumerate(rows)
    )
    table = f'<table class="numbers controlled"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _controls(results: Run) -> str:
    if results.controls is None:
        return ""
    frame = results.controls[results.controls["target"] == "mean"]
    rows = []
    for (control, resampled), part in frame.groupby(["control", "resampled"], sort=False):
        name, why = describe_control(control, resampled)
        values = part.set_index("metric")
        cells = [
            _interval(_score(values, metric)) for metric in ("accuracy", "balanced_accuracy", "selectivity", "p_value")
        ]
        rows.append([f"{name}: {why}", *cells])
    heads = ("", "test accuracy", "balanced", "probe less this", "p")
    return (
        f"<section><h2>Beside its controls</h2>{_table(heads, rows)}"
        '<p class="quiet">Brackets: 95 % interval over test rows; for permuted labels the middle 95 % of permutations. '
        "p: the share of permutations that are read as well as the true labels, these counted in.</p></section>"
    )


def _score(values: pd.DataFrame, metric: str) -> Score | None:
    if metric not in values.index:
        return None
    row = values.loc[metric]
    return Score(float(row["value"]), float(row["ci_low"]), float(row["ci_high"]))


def _classes(results: Run) -> str:
    """How each class is read: its test rows, the share found, and how often the name is right."""
    rows = results.test_predictions(results.headline_layer)
    true, predicted = rows[f"true_{results.label}"], rows[f"predicted_{results.label}"]
    right = true == predicted
    train = results.entities.loc[results.entities["split"] == "train", f"true_{results.label}"].value_counts()
    lines = []
    for name, number in true.value_counts().items():
        named = int((predicted == name).sum())
        precision = f"{(right & (predicted == name)).sum() / named:.2f}" if named else "–"
        found = f"{right[true == name].mean():.2f}"
        lines.append([str(name), f"{int(train.get(name, 0)):,}", f"{number:,}", found, precision])
    more = (
        f'<p class="quiet">The {MOST_CLASSES} most frequent of {len(lines)} classes.</p>'
        if len(lines) > MOST_CLASSES
        else ""
    )
    heads = (results.label, "training rows", "test rows", "found (recall)", "right when named (precision)")
    return _table(heads, lines[:MOST_CLASSES]) + more


def _mistakes(results: Run) -> str:
    rows = results.test_predictions(results.headline_layer)
    true, predicted = rows[f"true_{results.label}"], rows[f"predicted_{results.label}"]
    worst = rows[true != predicted].sort_values("probability", ascending=False).head(15)
    if not len(worst):
        return "<p>Every test row is named rightly.</p>"
    lines = [
        [
            str(row["text"]),
            str(row[f"true_{results.label}"]),
            str(row[f"predicted_{results.label}"]),
            f"{row['probability']:.2f}",
        ]
        for _, row in worst.iterrows()
    ]
    return _table(("name", "true", "predicted", "probability"), lines)


def _scores(results: Run) -> str:
    shown = [metric for metric in METRICS if results.score(results.headline_layer, metric) is not None]
    rows = [[layer, *(_interval(results.score(layer, metric)) for metric in shown)] for layer in results.layers]
    return _table(("layer", *(METRICS[metric] for metric in shown)), rows, results.layers.index(results.headline_layer))
