"""CITATION.cff holds what its format, version 1.2.0, asks for, and says what the package says of itself."""

import tomllib
from pathlib import Path
from typing import Any

import yaml
from treegrpo_cli import __version__

ROOT = Path(__file__).parent.parent
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
REQUIRED = {"authors", "cff-version", "message", "title"}
OPTIONAL = {
    "abstract",
    "commit",
    "contact",
    "date-released",
    "doi",
    "identifiers",
    "keywords",
    "license",
    "license-url",
}
OPTIONAL |= {"preferred-citation", "references", "repository", "repository-artifact", "repository-code", "type", "url"}
OPTIONAL |= {"version"}
PERSON = {"family-names", "given-names"}


def test_the_citation_has_the_keys_of_its_format_and_no_other() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert REQUIRED <= CITATION.keys() <= REQUIRED | OPTIONAL
    assert CITATION["type"] == "software"
    assert [author.keys() for author in CITATION["authors"]] == [{"name"}]


def test_the_citation_is_of_this_version_under_its_licence() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert CITATION["version"] == __version__
    assert CITATION["title"] == project["name"]
    assert CITATION["license"] == project["license"]
    assert [author["name"] for author in CITATION["authors"]] == [author["name"] for author in project["authors"]]


def test_the_paper_is_a_reference_of_the_citation() -> None:
    [paper] = CITATION["references"]
    assert {"authors", "title", "type"} <= paper.keys()  # what the format asks of a reference
    assert all(author.keys() == PERSON for author in paper["authors"])
    assert paper["identifiers"] == [{"type": "other", "value": "arXiv:2509.21240"}]
    assert "2509.21240" in (ROOT / "README.md").read_text(encoding="utf-8")
