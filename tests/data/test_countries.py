import os

import pandas as pd
import pytest

from jaxprobe.data.catalog import load_table
from jaxprobe.data.countries import ALIASES, merge_countries

DATA = os.environ.get("JAXPROBE_DATA")


def test_the_aliases_that_the_paper_leaves_in_training():
    names = ["England", "Scotland", "Wales", "Northern_Ireland", "Derbyshire", "United_Kingdom"]
    assert merge_countries(names) == ["United_Kingdom"] * 6
    assert merge_countries(["People's_Republic_of_China", "China"]) == ["China"] * 2
    assert merge_countries(["United_States_of_America", "United_States_"]) == ["United_States"] * 2
    assert merge_countries(["Puerto_Rico", "NA", ""]) == ["Puerto_Rico", "NA", ""]


def test_an_alias_means_one_country_and_no_country_is_an_alias():
    aliases = [alias for names in ALIASES.values() for alias in names.split()]
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & set(ALIASES)


@pytest.mark.skipif(DATA is None, reason="JAXPROBE_DATA does not name the folder of the paper's tables")
def test_every_name_is_one_that_the_table_has_and_lies_where_its_country_does():
    table = load_table("world_place", data_dir=DATA)
    places = pd.DataFrame(table.targets, columns=["latitude", "longitude"]).assign(
        country=table.groups["country"], merged=table.groups["country_merged"]
    )
    names = set(places["country"])
    assert {alias for names in ALIASES.values() for alias in names.split()} | set(ALIASES) <= names
    assert len(names) == 365
    # What is merged into a country lies within the box of the places that the paper itself has under its name,
    # which a mistaken line (a county of the wrong country) would not. 10 degrees: Tijuana, Hokkaido, Svalbard.
    for country, rows in places.groupby("merged"):
        own, merged = rows[rows["country"] == country], rows[rows["country"] != country]
        for axis in ("latitude", "longitude"):
            assert merged[axis].min() >= own[axis].min() - 10 or merged.empty, country
            assert merged[axis].max() <= own[axis].max() + 10 or merged.empty, country
    counts = places["merged"].value_counts()
    assert counts["United_Kingdom"] == 4096 + 1571
    assert counts["United_States"] > 6324 + 137 and counts["China"] == 443 + 168
