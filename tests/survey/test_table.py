"""The table of families says what was found, and the page in docs/ is of the installed transformers."""

from dataclasses import asdict
from pathlib import Path

import pytest
import transformers

from tests.survey.compare import TREE_PATHS, Finding
from tests.survey.configs import class_name, families
from tests.survey.table import table, verdict

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "families.md"


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        (Finding(differences=dict.fromkeys(("chains", *TREE_PATHS), 1e-6)), ("trees", "")),
        (
            Finding(differences={"chains": 1e-6, "runs": 1e-6, "dense": 1e-6}, refusals={"depth-first": "it recurs"}),
            ("trees", "depth-first: it recurs"),
        ),
        (Finding(differences={"chains": 1e-6}, refusals=dict.fromkeys(TREE_PATHS, "a state")), ("chains", "a state")),
        (Finding(refused="model.path: X cannot be trained"), ("refused", "X cannot be trained")),
        (Finding(differences={"chains": 0.5}), ("WRONG", "chains differs by 5e-01")),
        (Finding(crashed="KeyError: 1"), ("WRONG", "KeyError: 1")),
        (Finding(not_built="no sizes"), ("not built", "no sizes")),
    ],
)
def test_a_finding_has_one_verdict(finding: Finding, expected: tuple[str, str]) -> None:
    assert verdict(asdict(finding)) == expected


def test_variants_of_which_the_same_is_true_share_a_row_with_the_greatest_difference() -> None:
    same = [asdict(Finding(differences={"chains": size}, refusals=dict.fromkeys(TREE_PATHS, "why"))) for size in (1, 2)]
    small = [line | {"class": "X", "differences": {"chains": 1e-6 * line["differences"]["chains"]}} for line in same]
    other = asdict(Finding(refused="model.path: no")) | {"class": "X"}
    page = table({("x", ""): small[0], ("x", "window"): small[1], ("x", "is_decoder"): other}, [])
    assert "| x | X | chains | 2e-06 | why |\n| x: is_decoder | X | refused |  | no |\n" in page


def test_the_page_is_of_the_installed_library_names_every_family_and_none_is_wrong() -> None:
    page = PAGE.read_text()
    assert f"transformers {transformers.__version__} " in page
    assert [family for family in families() if f"| {family} | {class_name(family)} |" not in page] == []
    assert "WRONG" not in page
