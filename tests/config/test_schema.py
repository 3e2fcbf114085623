"""The JSON schema takes the settings files that a run takes, and refuses those that it refuses."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from treegrpo_cli.config import Config
from treegrpo_cli.config.catalogue import settings
from treegrpo_cli.config.files import make_config
from treegrpo_cli.config.options import options
from treegrpo_cli.config.schema import json_schema
from treegrpo_cli.errors import UserError

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(
    path
    for path in ROOT.joinpath("examples").rglob("*")
    if path.suffix in (".toml", ".yaml", ".yml") and "runs" not in path.parts and path.name != "kuberay.yaml"
)
VALIDATOR = Draft202012Validator(json_schema())


def takes(document: dict[str, Any]) -> bool:
    return bool(VALIDATOR.is_valid(document))


def test_the_schema_is_one_of_draft_2020_12() -> None:
    Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_committed_schema_is_that_of_the_source() -> None:
    committed = ROOT / "docs" / "reference" / "settings.schema.json"
    assert json.loads(committed.read_text(encoding="utf-8")) == json_schema()


def test_every_setting_has_its_meaning_and_its_default_in_the_schema() -> None:
    top = json_schema()["properties"]
    for setting in settings().values():
        table = top[setting.section]["properties"] if setting.section else top
        assert table[setting.name]["description"] == setting.meaning
        assert table[setting.name]["default"] == setting.default


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 10


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_fits(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    document = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    assert [error.message for error in VALIDATOR.iter_errors(document)] == []


def test_the_resolved_defaults_fit() -> None:
    assert [error.message for error in VALIDATOR.iter_errors(Config().model_dump(mode="json"))] == []


RIGHT: list[dict[str, Any]] = [
    {},
    {"report_to": "tensorboard"},
    {"report_to": "none"},
    {"report_to": ["wandb", "trackio"]},
    {"environment": {"stop": "</x>"}},
    {"environment": {"options": {"anything": {"at": ["all"]}}}},
    {"train": {"log_completions": True}},
    {"loss": {"dual_clip": 3, "importance_clip": 0}},
    {"loss": {"dual_clip": "auto"}},
    {"sampler": {"sleep": False}},
    {"advantage": {"center": "loo"}},
    {"advantage": {"estimator": "parent", "roots": "tree"}},
    {"advantage": {"estimator": "mine.py:credit", "anything": 3}},
    {
        "advantage": {
            "estimator": "",
            "terms": [{"estimator": "grpo"}, {"estimator": "parent", "weight": 0.5, "roots": "tree"}],
        }
    },
    {"selection": {"rule": "entropy", "alpha": 0.2}},
    {"selection": {"replacement": False}},
    {"model": {"lora_rank": 4, "lora_target_modules": ["q_proj"]}},
]
WRONG: list[dict[str, Any]] = [
    {"sed": 1},
    {"rollout": {"num_tree": 2}},
    {"rolout": {}},
    {"rollout": 3},
    {"seed": -1},
    {"seed": "many"},
    {"seed": 2**63},
    {"output_dir": ""},
    {"report_to": "mlflow"},
    {"report_to": ["mlflow"]},
    {"model": {"dtype": "float16"}},
    {"model": {"lora_target_modules": 3}},
    {"rollout": {"num_trees": 0}},
    {"rollout": {"num_trees": 1.5}},
    {"rollout": {"temperature": 0.001}},
    {"rollout": {"top_p": 0}},
    {"rollout": {"top_p": 1.01}},
    {"rollout": {"min_undrawn": 1}},
    {"rollout": {"schedule": "strict"}},
    {"environment": {"stop": [""]}},
    {"environment": {"stop": ["x"] * 17}},
    {"environment": {"options": 3}},
    {"reward": {"functions": []}},
    {"reward": {"weights": ["heavy"]}},
    {"sampler": {"sleep": "maybe"}},
    {"sampler": {"gpu_memory_utilization": 0}},
    {"loss": {"dual_clip": 0.5}},
    {"loss": {"importance_clip": 1e10}},
    {"loss": {"clip_high": -0.1}},
    {"optimizer": {"beta2": 1}},
    {"train": {"num_threads": 1025}},
    {"train": {"log_completions": -1}},
    {"limits": {"max_read_s": 0}},
    {"advantage": {"estimator": "grop"}},
    {"advantage": {"roots": "tree"}},
    {"advantage": {"estimator": "parent", "variant": "sum"}},
    {"advantage": {"terms": [{"weight": 1}]}},
    {"advantage": {"terms": [{"estimator": "grpo", "weight": 0}]}},
    {"selection": {"rule": "uniforn"}},
    {"selection": {"alpha": 1}},
]


@pytest.mark.parametrize("document", RIGHT, ids=repr)
def test_what_a_run_takes_fits(document: dict[str, Any]) -> None:
    make_config(document)
    assert takes(document)


@pytest.mark.parametrize("document", WRONG, ids=repr)
def test_what_a_run_refuses_does_not_fit(document: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        make_config(document)
    assert not takes(document)


@pytest.mark.parametrize("option", options(), ids=lambda option: f"{option.owner}-{option.name}")
def test_an_option_fits_beside_its_own_name(option: Any) -> None:
    naming = {"advantage": "estimator", "selection": "rule"}[option.section]
    assert takes({option.section: {naming: option.owner, option.name: option.default}})


def test_numbers_at_and_beyond_each_limit_are_judged_alike() -> None:
    for setting in settings().values():
        schema = json_schema()["properties"]
        field = (schema[setting.section]["properties"] if setting.section else schema)[setting.name]
        for limit in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            for value in (field[limit] - 1, field[limit], field[limit] + 1) if limit in field else ():
                document = {setting.section: {setting.name: value}} if setting.section else {setting.name: value}
                try:
                    make_config(document)
                except UserError as error:
                    if setting.key in str(error):
                        assert not takes(document), document
                else:
                    assert takes(document), document
