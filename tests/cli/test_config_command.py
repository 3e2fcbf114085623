"""`treegrpo config` answers what a setting is, to a person, a pipe and a tool."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from treegrpo_cli.cli import config as cli_config
from treegrpo_cli.cli.completion import complete_name
from treegrpo_cli.cli.config_lines import sections
from treegrpo_cli.config import Config
from treegrpo_cli.config.catalogue import settings, tables
from treegrpo_cli.config.files import make_config
from treegrpo_cli.config.options import options_by_key

from tests.command_line import refused, run

ROOT = Path(__file__).parents[2]


def test_a_pipe_gets_one_line_a_key_and_no_colour() -> None:
    lines = run("config").stdout.splitlines()
    assert [line.split(" = ")[0] for line in lines if not line.startswith("# ")] == list(settings())
    assert {line[2:].split(":")[0] for line in lines if line.startswith("# ")} == set(options_by_key())
    assert "\x1b" not in "".join(lines)


def test_what_a_pipe_gets_is_a_settings_file_with_every_default() -> None:
    assert make_config(tomllib.loads(run("config").stdout)) == Config()


def test_a_section_lists_its_own_keys_alone() -> None:
    lines = run("config", "selection").stdout.splitlines()
    assert lines[0].startswith('selection.rule = "uniform"  # string. The rule that')
    assert "# selection.alpha: a finite number, 0 or more; 0.1 for entropy, surprisal" in lines
    assert all(line.removeprefix("# ").startswith("selection.") for line in lines)


@pytest.mark.parametrize("width", [60, 80, 133])
def test_a_terminal_gets_lines_that_fit_it(width: int) -> None:
    lines = [line.plain for line in sections([*settings(), *options_by_key()], width)]
    assert max(map(len, lines)) <= width
    assert [line.strip("[]") for line in lines if line.startswith("[")] == [name for name in tables() if name]
    shown = [line.strip().split(" = ")[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert {key.rpartition(".")[2] for key in settings()} <= set(shown)


def test_a_terminal_has_colours_unless_no_color_says_no() -> None:
    cyan = "\x1b[1;36m"
    assert cyan in run("config", "budget", FORCE_COLOR="1", TERM="xterm").stdout
    plain = run("config", "budget", FORCE_COLOR="1", TERM="xterm", NO_COLOR="1").stdout
    assert not re.search(r"\x1b\[(?:\d;)*[34]\dm", plain)


@pytest.mark.parametrize("arguments", [["rollout.num_trees"], ["--explain", "rollout.num_trees"]])
def test_one_key_is_explained_in_full(arguments: list[str]) -> None:
    shown = run("config", *arguments).stdout
    for part in ("rollout.num_trees = 2", "integer, 1 to 1000000", "paper      M", "num_generations"):
        assert part in shown
    assert " ".join(settings()["rollout.num_trees"].meaning.split()) in " ".join(shown.split())


def test_a_key_is_explained_with_those_that_it_depends_on() -> None:
    assert "see also   rollout.num_trees" not in run("config", "rollout.allocation").stdout
    assert "see also   rollout.num_expansions, rollout.allocation_kappa" in run("config", "rollout.allocation").stdout


def test_somebody_elses_name_is_explained_by_ours() -> None:
    shown = run("config", "beta").stdout
    assert "beta is here loss.kl_coef:" in shown
    assert "loss.kl_coef = 0.0" in shown


def test_an_option_is_explained_for_each_estimator_that_has_it() -> None:
    shown = run("config", "--explain", "advantage.roots").stdout
    assert "of         parent, sibling, global-local, depth" in shown
    assert "legal      shared, tree" in shown


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("rollout.num_tree", "no setting is called 'rollout.num_tree'; did you mean 'rollout.num_trees'?"),
        ("num_trees", "no setting is called 'num_trees'; did you mean 'rollout.num_trees'?"),
        ("num_tres", "no setting is called 'num_tres'; did you mean 'rollout.num_trees'?"),
        ("rolout", "no setting is called 'rolout'; did you mean 'rollout'?"),
        ("zzz", "no setting is called 'zzz'; `treegrpo config` lists all"),
        ("logging_steps", "logging_steps: every step is logged, to metrics.jsonl and to report_to"),
    ],
)
def test_a_wrong_key_is_one_line_with_the_nearest(name: str, line: str) -> None:
    assert refused(run("config", name)) == f"treegrpo: {line}"


def test_a_section_cannot_be_explained() -> None:
    line = "treegrpo: --explain rollout: is a section; `treegrpo config rollout` lists its keys"
    assert refused(run("config", "--explain", "rollout")) == line


def test_two_names_are_refused() -> None:
    assert "--explain seed cannot be combined with rollout" in refused(run("config", "rollout", "--explain", "seed"))
    assert "rollout and --schema cannot be combined" in refused(run("config", "rollout", "--schema"))


def test_tools_get_json() -> None:
    shown = json.loads(run("config", "--format", "json").stdout)
    assert [setting["key"] for setting in shown["settings"]] == list(settings())
    assert {option["key"] for option in shown["options"]} == set(options_by_key())
    [seed] = json.loads(run("config", "seed", "--format", "json").stdout)["settings"]
    assert (seed["type"], seed["default"]) == ("integer, 0 or more", 0)


def test_the_schema_that_is_printed_is_the_committed_one() -> None:
    committed = ROOT / "docs" / "reference" / "settings.schema.json"
    assert run("config", "--schema").stdout == committed.read_text(encoding="utf-8")


def test_the_reference_page_is_what_is_printed() -> None:
    page = ROOT / "docs" / "reference" / "settings.md"
    assert run("config", "--markdown").stdout == page.read_text(encoding="utf-8")


def test_keys_and_sections_are_completed() -> None:
    assert complete_name("rollout.num_r") == ["rollout.num_rounds"]
    assert complete_name("sel") == ["selection"]


def test_every_name_that_is_listed_can_be_explained() -> None:
    assert all(cli_config.named(key) == (key,) for key in [*settings(), *options_by_key()])
