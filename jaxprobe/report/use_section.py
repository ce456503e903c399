"""Whether the model uses what the probe reads: the sentences of `experiment use`, and its effect by layer."""

from html import escape

import pandas as pd

from jaxprobe.host.paths import local_copy
from jaxprobe.report.phrases import layer_title, number
from jaxprobe.results.results import Run

_COLUMNS = {"question", "test", "layer", "edit", "metric", "value", "ci_low", "ci_high", "p", "resampled", "text"}


def use_section(results: Run) -> str:
    """The section of a run that was asked; "" of one that was not, or whose table is another's."""
    path = results.path / "experiments" / "use.parquet"
    if not path.is_file():
        return ""
    try:
        with local_copy(path) as copy:
            frame = pd.read_parquet(copy)
    except (OSError, ValueError):  # pyarrow's own errors derive from these two
        return ""
    if not set(frame.columns) >= _COLUMNS:
        return ""
    parts = [_question(str(name), part) for name, part in frame.groupby("question", sort=False)]
    return f"<section><h2>Does the model use it?</h2>{''.join(parts)}</section>"


def _question(name: str, frame: pd.DataFrame) -> str:
    said = "".join(f"<p>{escape(str(text))}</p>" for text in frame.loc[frame["test"] == "sentence", "text"])
    effects = frame[(frame["metric"] == "log_odds") & (frame["resampled"] != "groups")]
    erased = effects[(effects["test"] == "necessity") & (effects["edit"] == "leace")]
    permuted = effects[(effects["test"] == "controls") & (effects["edit"] == "permuted")].set_index("layer")
    rows = "".join(
        f'<tr><th scope="row">{escape(layer_title(str(row.layer)))}</th><td>{_interval(row)}</td>'
        f"<td>{_interval(permuted.loc[row.layer])}</td><td>{number(permuted.loc[row.layer].p, 3)}</td></tr>"
        for row in erased.itertuples()
        if row.layer in permuted.index
    )
    if not rows:
        return said
    heads = "".join(f'<th scope="col">{title}</th>' for title in ("", "erased", "permuted targets erased", "p"))
    return (
        f'{said}<div class="scroll" tabindex="0" role="region" aria-label="Use, {escape(name)}"><table class="numbers">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        '<p class="quiet">Change of the right answer\'s log-odds in nats, at the last token; 95 % interval over '
        "names, of permuted targets the middle 95 % of draws. p: of this layer alone; in the sentences, over all."
        "</p>"
    )


def _interval(row: pd.Series) -> str:
    return f"{number(row.value, 3)} [{number(row.ci_low, 3)}, {number(row.ci_high, 3)}]"
