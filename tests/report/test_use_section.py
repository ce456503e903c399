import pandas as pd

from jaxprobe.report.use_section import use_section
from jaxprobe.results.results import Run


def test_the_sentences_and_effects_are_on_the_page(place_run):
    run = Run(place_run)
    assert use_section(run) == ""
    row = {"question": "q", "layer": "3", "metric": "log_odds", "value": -0.25, "ci_low": -0.3, "ci_high": -0.2}
    row |= {"p": 0.01, "resampled": "rows", "text": "", "test": "necessity", "edit": "leace"}
    rows = [row, row | {"test": "controls", "edit": "permuted", "value": -0.01, "resampled": "draws"}]
    rows.append(row | {"test": "sentence", "layer": "", "text": "It <b> is needed for x."})
    folder = run.path / "experiments"
    folder.mkdir()
    pd.DataFrame(rows).to_parquet(folder / "use.parquet")
    shown = use_section(run)
    assert "It &lt;b&gt; is needed for x." in shown and "layer 3" in shown and "−0.250 [−0.300, −0.200]" in shown
    assert "0.010" in shown
    (folder / "use.parquet").write_bytes(b"no table")
    assert use_section(run) == ""
