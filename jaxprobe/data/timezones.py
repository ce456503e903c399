"""Time zones of the United States under four names: us_place has those of the tz database, which split them by history.

Holding out ``America/New_York`` by the paper's own column leaves Detroit, Indianapolis and Louisville in training;
``America/Denver`` leaves Phoenix and Boise. A few places at the border are under a Canadian or Mexican zone.
"""

from collections.abc import Sequence

ZONES = {
    "Eastern": (
        "New_York Detroit Indiana/Indianapolis Indiana/Vincennes Indiana/Winamac Indiana/Petersburg Indiana/Vevay "
        "Indiana/Marengo Kentucky/Louisville Kentucky/Monticello Toronto Montreal"
    ),
    "Central": (
        "Chicago Menominee Indiana/Knox Indiana/Tell_City North_Dakota/New_Salem North_Dakota/Beulah "
        "North_Dakota/Center Winnipeg Matamoros Ojinaga"
    ),
    "Mountain": "Denver Phoenix Boise",
    "Pacific": "Los_Angeles Tijuana",
}
_ZONE_OF = {f"America/{city}": zone for zone, cities in ZONES.items() for city in cities.split()}


def merge_timezones(timezones: Sequence[str]) -> list[str]:
    """The standard zone of each; names not in the table stay."""
    return [_ZONE_OF.get(timezone, timezone) for timezone in timezones]
