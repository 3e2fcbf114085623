"""Every setting says what it is, in words that a listing, a page and an editor can show."""

import subprocess
import sys

import pytest
from treegrpo_cli.config import Config
from treegrpo_cli.config.catalogue import about, as_toml, related, settings, tables
from treegrpo_cli.config.files import make_config
from treegrpo_cli.config.foreign_names import NEAR, foreign_names, own_keys
from treegrpo_cli.config.loss_spellings import TOGETHER
from treegrpo_cli.config.options import options_by_key
from treegrpo_cli.config.spellings import CONVERTED, SAME, in_our_words
from treegrpo_cli.config.values import flat
from treegrpo_cli.errors import UserError

MAX_SENTENCE = 150
PROBES = (True, False, 0, 1, 3.0, "vllm", "dapo", "token-mean", "std", "token", "token_truncate", "file", [], ["file"])
"""Values one of which each of other people's names takes."""
ONLY_OFF = {"vllm_importance_sampling_clip_min", "off_policy_mask_threshold"} | {
    f"algorithm.rollout_correction.{name}"
    for name in ("rollout_is_batch_normalize", "rollout_rs", "rollout_rs_threshold")
}
"""Names that set nothing: they are accepted where they are off."""


def test_the_catalogue_has_every_key_of_a_settings_file_in_its_order() -> None:
    document = Config().model_dump()
    document["environment"]["options"] = "no table, whose keys are nobody's"
    assert list(settings()) == list(flat(document))
    assert {key: setting.default for key, setting in settings().items() if key != "environment.options"} == {
        key: value for key, value in flat(Config().model_dump(mode="json")).items() if key != "environment.options"
    }


@pytest.mark.parametrize("key", settings())
def test_every_key_has_a_meaning_whose_first_sentence_fits_two_lines(key: str) -> None:
    setting = settings()[key]
    assert setting.summary.endswith(".")
    assert setting.summary[0].isupper()
    assert 10 < len(setting.summary) <= MAX_SENTENCE
    assert setting.meaning.count("`") % 2 == 0


def test_every_section_says_what_it_is_for() -> None:
    assert [section for section in tables() if not about(section).endswith(".")] == []


def test_a_key_names_those_that_its_meaning_names_and_those_that_name_it() -> None:
    assert related(settings()["budget.run_tokens"]) == ["train.num_steps"]
    assert "budget.run_tokens" in related(settings()["train.num_steps"])
    assert related(settings()["loss.clip_low"]) == ["loss.clip_high"]


def test_defaults_written_as_toml_are_the_defaults() -> None:
    import tomllib

    for key, setting in settings().items():
        assert tomllib.loads(f"value = {as_toml(setting.default)}")["value"] == setting.default, key


def test_limits_are_told_in_words() -> None:
    kinds = {
        "rollout.num_trees": "integer, 1 to 1000000",
        "rollout.min_undrawn": "number, 0.001 or more, below 1",
        "rollout.top_p": "number, above 0, at most 1",
        "model.dtype": "auto | float32 | bfloat16",
        "sampler.sleep": "auto or boolean",
        "loss.dual_clip": "auto or 0 or number, above 1, at most 1000000000",
        "environment.options": "table",
        "train.num_steps": "integer, 1 or more",
        "train.log_completions": "integer, 0 to 1000000 or true",
        "reward.functions": "list of strings, 1 or more entries",
    }
    assert {key: settings()[key].kind for key in kinds} == kinds


def test_every_foreign_name_leads_to_the_keys_that_it_sets() -> None:
    known = set(settings()) | set(options_by_key())
    assert {key for name in {**SAME, **NEAR} for key in own_keys(name)} - known == {
        "environment.options.retriever_url",
        "environment.options.topk",
    }
    assert CONVERTED.keys() | TOGETHER.keys() == (NEAR.keys() - {"num_generations", "delta"}) | ONLY_OFF | {
        "rollout.replacement"
    }


@pytest.mark.parametrize("name", sorted(NEAR.keys() - {"num_generations", "delta"}))
def test_a_foreign_name_sets_the_keys_that_are_said(name: str) -> None:
    set_by = set()
    for value in PROBES:
        for beside in ({}, {"vllm_importance_sampling_mode": "token_truncate"}, {"loss.importance_clip": 2.0}):
            try:
                set_by |= {key for key, _ in in_our_words([(name, value)], beside)}
            except UserError:
                continue
    assert set(NEAR[name]) <= set_by
    assert set_by - set(NEAR[name]) <= {
        "loss.kl_ratio",
        "loss.denominator_constant",
        "advantage.eps",
        "loss.old_logprobs",
    }


def test_chains_and_delta_set_what_is_said() -> None:
    assert make_config({"num_generations": 7, "rollout": {"num_rounds": 0}}).rollout.num_trees == 7
    assert make_config({"delta": 4.0}).loss.dual_clip == 4.0
    assert foreign_names("rollout.num_trees") == ("num_generations", "actor_rollout_ref.rollout.n")


def test_importing_the_settings_reads_no_source() -> None:
    code = (
        "import sys, treegrpo_cli.config\n"
        "print([name for name in ('ast', 'inspect', 'treegrpo_cli.config.meanings') if name in sys.modules], "
        "treegrpo_cli.config.Config.model_config.get('use_attribute_docstrings'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "meanings" not in done.stdout
    assert done.stdout.endswith("None\n")
