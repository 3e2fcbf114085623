"""Settings that no run could hold are one short line; what is taken can be written and read back."""

import datetime
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from treegrpo_cli.config.files import dump_config, load_config, make_config
from treegrpo_cli.errors import FileError, UserError

HUGE = "9" * 5000
HEX = "0x" + "f" * 5000


def refused(work: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        work()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 500


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"seed={HUGE}", "seed: this value cannot be read"),
        (f"seed={HEX}", "seed: an integer beyond 64 bits"),
        (f"environment.options.x={HEX}", r"environment\.options\.x: an integer beyond 64 bits"),
        (f"environment.options.x=-{2**63 + 1}", r"environment\.options\.x: an integer beyond 64 bits"),
        (f"environment.options.x=[1, {2**64}]", r"environment\.options\.x\.1: an integer beyond 64 bits"),
        (f"environment.options.x={'[' * 50}{']' * 50}", "nested deeper than 32"),
        (f"environment.options.x={'[' * 9000}", r"environment\.options\.x: this value cannot be read"),
        (f"environment.options{'.x' * 60}=1", "nested deeper than 32"),
        ("environment.options.when=2024-01-01", r"options\.when: a date; write it as text, in quotes"),
        ("environment.options.when=2024-01-01T00:00:00Z", "a datetime; write it as text"),
        ("environment.options.when=10:00:00", "a time; write it as text"),
        ("environment.options.x=nan", r"environment\.options\.x: must be a finite number, got nan"),
        ("environment.options.x=-inf", "must be a finite number, got -inf"),
        ("advantage.eps=nan", r"advantage\.eps: must be a finite number"),
        ("advantage.eps=1979-05-27", r"advantage\.eps: a date"),
        ("model.path=\udcff", "model.path: not UTF-8"),
        ("seed=9223372036854775808", "seed: an integer beyond 64 bits"),
        ("seed=-1", "seed: "),
        ("rollout.num_expansions=300000000", r"rollout\.num_expansions: .*less than or equal to 1000000"),
        ("rollout.num_expansions=5000000000", r"rollout\.num_expansions: .*less than or equal"),
        ("rollout.num_trees=1000001", r"rollout\.num_trees: .*less than or equal"),
        ("rollout.num_rounds=1000001", r"rollout\.num_rounds: .*less than or equal"),
        ("rollout.num_rounds=1000000", r"1 \+ num_expansions \* num_rounds is 2000001; a tree has at most"),
        ("train.prompts_per_step=1000001", r"train\.prompts_per_step: .*less than or equal"),
        ("train.num_steps=1e30", r"train\.num_steps: "),
        (f"rollout.top_k={2**31}", r"rollout\.top_k: .*less than or equal to 2147483647"),
        (f"rollout.top_k={2**70}", r"rollout\.top_k: an integer beyond 64 bits"),
        ("data.limit=1e20", r"data\.limit: "),
        ("environment.tool_timeout_s=1e300", r"environment\.tool_timeout_s: .*less than or equal"),
        (f"output_dir={'x' * 300}", r"output_dir: the name is too long for a folder"),
        (f"output_dir={'x/' * 3000}", r"output_dir: the name is too long for a folder"),
        ("output_dir=/", r"output_dir: a run cannot be written to /"),
        ('output_dir="a\\u0000"', r"output_dir: the name contains a NUL"),
        ("rollout=3", "rollout: "),
        ("x" * 4000, "expected section.key=value"),
        (f"{'x' * 4000}=1", "unknown key 'xxx"),
        (f"model.dtype={'x' * 4000}", r"model\.dtype: "),
    ],
)
def test_a_setting_that_no_run_could_hold_is_one_short_line(override: str, message: str) -> None:
    refused(lambda: load_config(None, [override]), message)


YAML = {
    "an integer of 5,000 digits": (f"seed: {HUGE}", "not YAML: Exceeds the limit"),
    "a hexadecimal of 5,000 digits": (f"seed: {HEX}", "seed: an integer beyond 64 bits"),
    "lists in lists": ("a: " + "[" * 5000, "nested too deep|not YAML"),
    "a key that is a number": ("environment: {options: {1: x}}", r"environment\.options: a key must be text, got 1"),
    "a key that is a list": ("? [1]\n: x", "not YAML|a key must be text"),
    "null in the options": ("environment: {options: {x: null}}", r"environment\.options\.x: null; leave it out"),
    "bytes": ("model: {path: !!binary aGk=}", r"model\.path: a bytes; write it as text"),
    "a set": ("environment: {options: {x: !!set {a}}}", "a set; write it as text"),
    "a surrogate": ('model: {path: "\\ud800"}', "not UTF-8|not YAML"),
    "aliases of aliases": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(20)),
        "more than 100000 values, with aliases written out",
    ),
    "merges of merges": (
        "a: &a {k: x}\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{','.join([f'*{chr(97 + n)}'] * 9)}]}}\n" for n in range(20)),
        "more than 100000 values, with aliases written out",
    ),
    "an alias of what stands around it": ("a: &a [*a]", "more than 100000 values"),
    "more than a file of settings has": ("a: 1\n" * 60_000, r"more bytes than limits\.max_file_bytes = 262144"),
    "nothing": ("", "expected a table of settings"),
}


@pytest.mark.parametrize("what", YAML)
def test_a_yaml_file_that_no_run_could_hold_is_one_short_line(tmp_path: Path, what: str) -> None:
    content, message = YAML[what]
    (tmp_path / "c.yaml").write_text(content)
    refused(lambda: load_config(tmp_path / "c.yaml"), rf"c\.yaml.*(?:{message})")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"seed = {HUGE}", "not TOML: Exceeds the limit"),
        ("a = " + "[" * 9000, "nested too deep"),
        ("a." * 9000 + "b = 1", "nested deeper than 32"),
        ("[environment.options]\nx = nan", r"environment\.options\.x: must be a finite number"),
    ],
)
def test_a_toml_file_that_no_run_could_hold_is_one_short_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(content)
    refused(lambda: load_config(tmp_path / "c.toml"), rf"c\.toml: .*{message}")


def test_a_file_without_an_end_is_no_config(tmp_path: Path) -> None:
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    refused(lambda: load_config(tmp_path / "zero.toml"), "more bytes than")
    with pytest.raises(FileError, match="NUL"):
        load_config(Path("a\0.toml"))


def test_aliases_in_reason_are_read_and_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "environment: {options: {first: &x {topk: 1}, second: *x}}\nrollout: &r {num_trees: 3}\n"
    )
    config = load_config(tmp_path / "c.yaml", ["environment.options.first.topk=2"])
    assert config.environment.options == {"first": {"topk": 2}, "second": {"topk": 1}}
    assert config.rollout.num_trees == 3


def test_values_of_python_that_no_file_can_hold_are_refused() -> None:
    endless: dict[str, Any] = {}
    endless["x"] = endless
    for value, message in ((endless, "nested deeper"), (datetime.date(2024, 1, 1), "a date"), (object(), "a object")):
        refused(lambda value=value: make_config({"environment": {"options": {"x": value}}}), message)
    refused(lambda: make_config({"environment": {"options": {"x": [0] * 200_000}}}), "more than 100000 settings")


def test_the_largest_values_that_are_taken_can_be_used() -> None:
    config = make_config({"seed": 2**63 - 1, "rollout": {"top_k": 2**31 - 1}, "data": {"limit": 2**63 - 1}})
    assert load_config_of(dump_config(config)) == config


def load_config_of(text: str) -> Any:
    return make_config(tomllib.loads(text))


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.none()),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(options=st.dictionaries(st.text(max_size=4), VALUES, max_size=4))
def test_options_of_any_kind_are_refused_or_written_and_read_back_the_same(options: dict[str, Any]) -> None:
    try:
        config = make_config({"environment": {"options": options}})
    except UserError:
        return
    assert load_config_of(dump_config(config)) == config
