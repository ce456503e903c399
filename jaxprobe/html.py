"""How results look to people: the scores by layer, and HTML for notebooks, in which every name is text."""

import math
from collections.abc import Iterable, Sequence
from html import escape

import pandas as pd

# What the error's column is called; the first one that the scores have is shown.
ERRORS = {"error_km_median": "median km", "mae": "mean error"}


def scores_by_layer(scores: pd.DataFrame) -> pd.DataFrame:
    """Test scores (mean over targets), one row a state in the order of the forward pass.

    Args:
      scores: a run's score table.

    Returns:
      Columns layer, r2, ci_low, ci_high, spearman, one of ERRORS (km, or the targets' unit), alpha; NaN for what is
      not known, such as a mean over errors in different units. Of class labels accuracy, ci_low, ci_high,
      balanced_accuracy, log_loss, alpha.
    """
    if main_metric(scores) == "accuracy":
        return _class_scores_by_layer(scores)
    test = scores[(scores["split"] == "test") & scores["target"].isin(["mean", "place"])]
    r2 = test[test["metric"] == "r2"].set_index("layer")
    values = test.pivot(index="layer", columns="metric", values="value")
    error = next((metric for metric in ERRORS if metric in values), "mae")
    return pd.DataFrame(
        {
            "layer": r2.index,
            "r2": r2["value"].to_numpy(),
            "ci_low": r2["ci_low"].to_numpy(),
            "ci_high": r2["ci_high"].to_numpy(),
            "spearman": values["spearman"].reindex(r2.index).to_numpy(),
            error: values[error].reindex(r2.index).to_numpy() if error in values else float("nan"),
            "alpha": r2["alpha"].to_numpy(),
        }
    )


def main_metric(scores: pd.DataFrame) -> str:
    """What tells how well a probe reads: "r2", or of class labels "accuracy"."""
    return "accuracy" if (scores["metric"] == "accuracy").any() else "r2"


def _class_scores_by_layer(scores: pd.DataFrame) -> pd.DataFrame:
    test = scores[(scores["split"] == "test") & (scores["target"] == "mean")]
    accuracy = test[test["metric"] == "accuracy"].set_index("layer")
    values = test.pivot(index="layer", columns="metric", values="value").reindex(accuracy.index)
    columns = {"accuracy": accuracy["value"], "ci_low": accuracy["ci_low"], "ci_high": accuracy["ci_high"]}
    columns |= {name: values[name] for name in ("balanced_accuracy", "log_loss")} | {"alpha": accuracy["alpha"]}
    return pd.DataFrame({"layer": accuracy.index} | {name: column.to_numpy() for name, column in columns.items()})


def scores_in_words(scores: pd.DataFrame, headline: str) -> tuple[list[str], list[list[str]], int]:
    """The same as text: the head of each column, the rows, and which row is the headline's (marked with a star)."""
    frame = scores_by_layer(scores)
    marked = list(frame["layer"]).index(headline)
    if "accuracy" in frame:
        heads = ["layer", "accuracy", "95 % interval", "balanced", "log-loss", "alpha"]
        rows = [
            [
                row["layer"] + (" *" if row["layer"] == headline else ""),
                f"{row['accuracy']:.3f}",
                f"{row['ci_low']:.3f} to {row['ci_high']:.3f}",
                f"{row['balanced_accuracy']:.3f}",
                f"{row['log_loss']:.3f}",
                "" if pd.isna(row["alpha"]) else f"{row['alpha']:.3g}",
            ]
            for _, row in frame.iterrows()
        ]
        return heads, rows, marked
    error = next(metric for metric in ERRORS if metric in frame)
    heads = ["layer", "R2", "95 % interval", "Spearman", ERRORS[error], "alpha"]
    rows = [
        [
            row["layer"] + (" *" if row["layer"] == headline else ""),
            decimal_text(row["r2"], 3),
            f"{decimal_text(row['ci_low'], 3)} to {decimal_text(row['ci_high'], 3)}",
            decimal_text(row["spearman"], 3),
            "" if pd.isna(row[error]) else decimal_text(row[error], 1),
            f"{row['alpha']:.3g}",
        ]
        for _, row in frame.iterrows()
    ]
    return heads, rows, marked


def decimal_text(value: float, digits: int) -> str:
    """A number with this many decimals; four digits are enough from 10 on, and 10 million is a power of ten.

    0.412, -12.35, -3,613, -1.00e+53; "nan" for what is none.
    """
    if not math.isfinite(value) or abs(value) >= 1e7:
        return f"{value:.2e}"
    if abs(value) >= 10:
        digits = min(digits, max(0, 3 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def html_table(heads: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "", bold: int = -1) -> str:
    """An HTML table of text; ``bold`` is the number of a row to set in bold."""
    head = "".join(f"<th>{escape(str(name))}</th>" for name in heads)
    strong = ' style="font-weight:bold"'
    body = "".join(
        f"<tr{strong if number == bold else ''}>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>"
        for number, row in enumerate(rows)
    )
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
