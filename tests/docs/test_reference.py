"""The reference pages say what the source says, and lack nothing."""

import re

import pytest
import treegrpo_cli
from treegrpo_cli._core import describe_estimators
from treegrpo_cli.cli.app import app
from treegrpo_cli.run.metric_names import METRICS, all_metrics, metric_of

from tests.docs import page_of_commands, page_of_estimators, page_of_python
from tests.docs.reference_pages import PAGES, REFERENCE


@pytest.mark.parametrize("name", PAGES)
def test_a_page_made_of_the_source_is_of_this_source(name: str) -> None:
    assert (REFERENCE / name).read_text(encoding="utf-8") == PAGES[name](), "write it anew: python -m tests.docs"


def test_every_command_has_an_example_and_every_example_a_command() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names == page_of_commands.commands().keys()
    assert names - page_of_commands.EXAMPLES.keys() == set()
    for name, examples in page_of_commands.EXAMPLES.items():
        assert {line.split()[:2] == ["treegrpo", name] for line in examples.splitlines()} == {True}


def test_options_stand_on_the_page_as_help_spells_them() -> None:
    page = (REFERENCE / "commands.md").read_text(encoding="utf-8")
    assert "| `--format text\\|json` | Lines, or one JSON object. | `text` |" in page
    assert "| `--n INTEGER` | Samples per question. | `1` |" in page
    assert "treegrpo eval [OPTIONS] MODEL|RUN [CONFIG KEY=VALUE]..." in page


def test_every_estimator_says_when_it_is_of_use() -> None:
    assert page_of_estimators.WHEN.keys() == {known["name"] for known in describe_estimators()}


def test_every_public_name_has_its_place_on_the_page_of_python() -> None:
    shown = {name for names in page_of_python.SECTIONS.values() for name in names}
    assert shown >= set(treegrpo_cli.__all__)
    page = (REFERENCE / "python.md").read_text(encoding="utf-8")
    functions = [name for name in treegrpo_cli.__all__ if name != "__version__"]
    for entry in [re.split(r"\n#{2,3} ", page.partition(f"\n### {name}\n")[2])[0] for name in functions]:
        assert ">>>" in entry or "| field |" in entry, "an example that runs, or a table of fields"


def test_the_page_of_python_has_what_classes_inherit_and_no_heading_twice() -> None:
    page = (REFERENCE / "python.md").read_text(encoding="utf-8")
    for name in ("TreeRecord", "Trees"):
        entry = page.partition(f"\n### {name}\n")[2].partition("\n##")[0]
        assert [method for method in ("to_pandas", "to_arrow") if f"\n- `.{method}(" not in entry] == []
    headings = re.findall(r"^##+ (.+)$", page, re.MULTILINE)
    assert len(set(headings)) == len(headings)


def test_names_of_metrics_are_told_apart() -> None:
    assert len({metric.name for metric in all_metrics()}) == sum(map(len, METRICS.values()))
    for name, known in {
        "reward": "reward",
        "rewards/exact_match/mean": "rewards/NAME/mean",
        "eval/f1": "eval/NAME",
        "eval/f1_low": "eval/NAME_low",
        "eval/num_questions": "eval/num_questions",
        "tree/gap_tokens_16": "tree/gap_tokens_N",
    }.items():
        assert (found := metric_of(name)) is not None
        assert found.name == known
    assert [name for name in ("rewards", "tree/gap_depth_", "tree/gap_depth_x", "NAME") if metric_of(name)] == []
