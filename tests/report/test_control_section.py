"""What else would explain the score stands beside it, in words and in full."""

import numpy as np
import pandas as pd
import pytest

from jaxprobe.report.page import render_page
from jaxprobe.results.results import Run
from tests.invented import control_rows
from tests.report.test_page import Page


def page_of(run) -> Page:
    return Page(render_page([Run(run)]))


def test_headline_says_what_is_reached_without_the_layers(place_run):
    place_run.write_controls(control_rows())
    text = page_of(place_run).text
    assert "The token embedding alone reaches R² 0.261 [0.241, 0.281], which the probe exceeds." in text
    assert "The spelling alone, without a model, reaches R² 0.852 [0.830, 0.870], more than the probe." in text


def test_a_lead_within_its_interval_is_called_none(place_run):
    controls = control_rows()
    spelling = (controls["control"] == "ngrams") & (controls["metric"] == "selectivity")
    controls.loc[spelling, ["value", "ci_low", "ci_high"]] = 0.01, -0.01, 0.03
    place_run.write_controls(controls)
    assert "R² 0.852 [0.830, 0.870], and it is open which of the two is higher." in page_of(place_run).text


def test_every_control_has_a_row(place_run):
    place_run.write_controls(control_rows())
    rows = page_of(place_run).rows
    start = rows.index(["", "test R²", "probe less this", "p"]) + 1
    numbers = [row[1:] for row in rows[start : start + 6]]
    assert numbers == [
        ["0.800 [0.780, 0.820]", "–", "–"],
        ["0.261 [0.241, 0.281]", "0.539 [0.510, 0.570]", "–"],
        ["0.852 [0.830, 0.870]", "−0.052 [−0.081, −0.023]", "–"],
        ["0.966 [0.960, 0.970]", "–", "–"],
        ["0.800 [0.655, 0.845]", "–", "–"],
        ["−0.001 [−0.002, 0.000]", "–", "0.05"],
    ]
    names = [row[0] for row in rows[start : start + 6]]
    assert names[3].startswith("The mean of its country")
    assert names[4].startswith("The probe, whole groups of country resampled")


@pytest.mark.parametrize("with_embed", [True, False])
def test_without_controls_the_embed_state_stands_alone(place_run, with_embed):
    if not with_embed:
        scores = place_run.read_scores()
        place_run.write_scores(scores[scores["layer"] != "embed"])
    page = page_of(place_run)
    assert ("The token embedding alone reaches R²" in page.text) == with_embed
    assert "Beside its controls" not in page.text
    assert np.all(["probe less this" not in row for row in page.rows])


def test_where_there_is_no_p_value_the_table_says_why(place_run):
    rows, none = control_rows(), np.nan
    few = rows.query("control == 'permuted'").assign(control="permuted_country")
    few.loc[few["metric"] == "p_value", "value"] = none
    lead = few[few["metric"] == "r2"].assign(metric="selectivity", value=0.8, ci_low=0.79, ci_high=0.81)
    undefined = pd.concat([few, lead]).assign(control="permuted_kind", value=none, ci_low=none, ci_high=none)
    place_run.write_controls(pd.concat([rows, few, lead, undefined], ignore_index=True))
    cells = {row[0]: row[-1] for row in page_of(place_run).rows if row[0].startswith("Targets exchanged")}
    assert [cells[name] for name in sorted(cells)] == ["none: too few groups", "none: no score"]


def test_what_whole_groups_are_resampled_for_says_so_and_why_it_has_no_interval(place_run):
    rows = control_rows()
    inside = rows.query("resampled == 'country'").assign(ci_low=np.nan, ci_high=np.nan)
    few = [inside.assign(control=f"within_{group}", resampled=group) for group in ("country", "continent")]
    place_run.write_controls(pd.concat([rows, *few], ignore_index=True))
    cells = {row[0]: row[1:] for row in page_of(place_run).rows}
    tested = place_run.read_entities().query("split == 'test'")
    for group in ("country", "continent"):  # of many countries it can only be the scores that are missing
        (name,) = [name for name in cells if name.startswith(f"Inside each {group}")]
        count = len(set(tested[f"group_{group}"]))
        assert name.endswith(f"; no interval: too few groups ({count}), or resamples without a score")
        assert cells[name][0] == "0.800"
    (with_interval,) = [name for name in cells if name.startswith("The probe, whole groups of country resampled")]
    assert "no interval" not in with_interval


@pytest.mark.slow
def test_what_has_no_score_is_a_dash(place_run):
    rows = control_rows()
    rows.loc[rows["control"] == "embed", ["value", "ci_low", "ci_high"]] = np.nan
    place_run.write_controls(rows)
    page = page_of(place_run)
    (cells,) = [row[1:] for row in page.rows if row[0].startswith("The token embedding")]
    assert cells == ["–", "–", "–"] and "The token embedding alone reaches R² –." in page.text
