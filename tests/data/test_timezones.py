"""Merged time zones against the tz database's own offsets."""

import os
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from jaxprobe.data.catalog import load_table
from jaxprobe.data.timezones import ZONES, merge_timezones

DATA = os.environ.get("JAXPROBE_DATA")
HOURS = {"Eastern": -5, "Central": -6, "Mountain": -7, "Pacific": -8}


def test_each_zone_has_one_clock_in_winter():
    for zone, cities in ZONES.items():
        for city in cities.split():
            offset = datetime(2024, 1, 1, tzinfo=ZoneInfo(f"America/{city}")).utcoffset()
            assert offset.total_seconds() == 3600 * HOURS[zone], city
    assert merge_timezones(["America/Boise", "Europe/Oslo"]) == ["Mountain", "Europe/Oslo"]


@pytest.mark.data
def test_every_us_place_is_in_one_of_four():
    table = load_table("us_place", data_dir=DATA)
    assert set(table.groups["timezone_merged"]) == set(ZONES)
    assert len(set(table.groups["timezone"])) == 27
