"""Settings are read from TOML or YAML, overridden by dotted keys, and refused with a name that helps."""

import tomllib
from pathlib import Path

import pytest
from treegrpo_cli.config.files import dump_config, load_config, make_config
from treegrpo_cli.errors import FileError, UserError


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    toml = write(
        tmp_path / "a.toml", "seed = 3\n[rollout]\nnum_trees = 4\n[advantage]\nestimator = 'parent'\nscale = 'std'\n"
    )
    yaml = write(tmp_path / "a.yaml", "seed: 3\nrollout: {num_trees: 4}\nadvantage: {estimator: parent, scale: std}\n")
    assert load_config(toml) == load_config(yaml)
    assert load_config(toml).rollout.num_trees == 4
    assert load_config(toml).advantage.options == {"scale": "std"}


def test_overrides_win_over_the_file_and_keep_their_types(tmp_path: Path) -> None:
    file = write(tmp_path / "a.toml", "[rollout]\nnum_trees = 4\n")
    overrides = ["rollout.num_trees=7", "model.path=some/where", "rollout.include_root=false", "report_to=none"]
    config = load_config(file, overrides)
    assert (config.rollout.num_trees, config.model.path, config.rollout.include_root) == (7, "some/where", False)
    assert config.report_to == []


def test_a_dumped_config_reads_back_the_same(tmp_path: Path) -> None:
    config = make_config(
        {"loss": {"dual_clip": 3.0}, "advantage": {"estimator": "grpo", "scale": "none"}, "report_to": "tensorboard"}
    )
    assert load_config(write(tmp_path / "c.toml", dump_config(config))) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.num_tree=4", r"unknown key 'rollout.num_tree', did you mean 'num_trees'"),
        ("num_trees=4", r"unknown key 'num_trees', did you mean 'rollout.num_trees'"),
        ("rolout.num_trees=4", r"unknown key 'rolout.num_trees', did you mean 'rollout'"),
        ("rollout.nope=4", r"^the command line: unknown key 'rollout.nope', valid: "),
        ("rollout.num_trees=zero", r"rollout.num_trees: .*got 'zero'"),
        ("rollout.num_trees=0", r"rollout.num_trees: .*greater than or equal to 1, got 0"),
        ("rollout.temperature=nan", r"rollout.temperature: .*got nan"),
        ("rollout.temperature=-1", r"rollout.temperature: "),
        ("rollout.temperature=0.009", r"rollout.temperature: .*0.01, got 0.009"),
        ("loss.clip_high=1e308", r"loss.clip_high: .*less than or equal to 1000000000"),
        ("loss.dual_clip=1e10", r"loss.dual_clip: expected at most 1e\+09, or 0 for no bound, got 10000000000.0$"),
        ("loss.importance_clip=1e308", r"loss.importance_clip: expected at most 1e\+09"),
        ("sampler.sleep=maybe", r": sampler.sleep: input should be 'auto' or a valid boolean.*, got 'maybe'$"),
        ("model.lora_target_modules=3", r": model.lora_target_modules: .*a valid string or a valid list, got 3$"),
        ("environment.stop=['', 'x']", r": environment.stop.0: "),
        ("train.num_threads=100000", r"train.num_threads: .*less than or equal to 1024"),
        ("optimizer.learning_rate=inf", r"optimizer.learning_rate: "),
        ("loss.dual_clip=0.5", r"loss.dual_clip: "),
        ("loss.entropy_coef=-0.1", r"loss.entropy_coef: "),
        ("loss.ratio=row", r"loss.ratio: .*'token', 'turn' or 'sequence', got 'row'"),
        ("importance_sampling_level=tokens", r"loss.ratio: "),
        ("rollout.num_kept_leaves=4", r"rollout: num_kept_leaves is 4.*= 3 leaves"),
        ("rollout.max_context_tokens=1", r"no tokens for a turn"),
        ("train.prompts_per_minibatch=99", r"prompts_per_minibatch is 99"),
        ("selection.rule=uniforn", r"selection: unknown selection rule 'uniforn'"),
        ("selection.alpha=1", r"selection: uniform has no option 'alpha'"),
        ("budget.prompt_tokens=-1", r"budget.prompt_tokens: "),
        ("budget.prompt_second=1", r"budget.prompt_second'.*prompt_seconds"),
        ("advantage.estimator=grop", r"advantage: unknown estimator 'grop'"),
        ("advantage.roots=tree", r"advantage: tree-grpo has no option 'roots'"),
        ("advantage={estimator='parent', mask='tool-calls'}", r"advantage: .*\[\[advantage.terms\]\]"),
        ("advantage.eps=-1", r"advantage: option eps"),
        ("model.dtype=float16", r"model.dtype: "),
        ("report_to=mlflow", r"report_to"),
        ("output_dir=", r"output_dir: "),
        ("rollout.num_trees", r"expected section.key=value"),
        ("=3", r"expected section.key=value"),
    ],
)
def test_a_wrong_setting_is_named_with_its_key(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(None, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "override", "message"),
    [
        ("seed = 1", "nope.key=1", "the command line: unknown key 'nope.key', "),
        ("[rollout]\nnum_trees = 2", "rollout.num_trees=zero", "the command line: rollout.num_trees: "),
        ("seed = 1", "loss={nope=2}", "the command line: unknown key 'loss.nope', "),
        ("[nope]\nother = 1", "nope.key=1", "c.toml: unknown key 'nope', "),
        ("[rollout]\nnope = 1", "rollout.num_trees=2", "c.toml: unknown key 'rollout.nope', "),
    ],
)
def test_a_mistake_in_an_argument_is_not_blamed_on_the_file(
    content: str, override: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path / "c.toml", content), [override])
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.toml", None, "No such file"),
        ("bad.toml", b"seed = ", "not TOML"),
        ("bad.yaml", b"a: [1, 2", "not YAML"),
        ("binary.toml", bytes([0xFF, 0xFE, 0x00]), "not a text file"),
        ("list.yaml", b"- 1\n- 2\n", "expected a table"),
        ("tag.yaml", b"seed: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_replacement_is_an_option_of_uniform_where_earlier_versions_had_it() -> None:
    config = load_config(None, ["rollout.replacement=false"])
    assert (config.selection.rule, config.selection.options) == ("uniform", {"replacement": False})
    assert load_config(None, ["rollout.replacement=true", "selection.rule=entropy"]).selection.options == {}
    with pytest.raises(UserError, match="selection: entropy has no option 'replacement'"):
        load_config(None, ["rollout.replacement=false", "selection.rule=entropy"])


def test_trl_spellings_are_ours() -> None:
    config = load_config(
        None,
        [
            "beta=0.04",
            "epsilon=0.1",
            "epsilon_high=0.28",
            "delta=4.0",
            "importance_sampling_level=sequence",
            "num_iterations=2",
            "lr_scheduler_type=cosine",
        ],
    )
    assert config == make_config(
        {
            "loss": {
                "kl_coef": 0.04,
                "kl_ratio": True,
                "clip_low": 0.1,
                "clip_high": 0.28,
                "dual_clip": 4.0,
                "ratio": "sequence",
            },
            "train": {"num_epochs": 2},
            "optimizer": {"schedule": "cosine"},
        }
    )


def test_trl_epsilon_alone_sets_both_sides() -> None:
    assert (make_config({"epsilon": 0.3}).loss.clip_low, make_config({"epsilon": 0.3}).loss.clip_high) == (0.3, 0.3)
    assert load_config(None, ["epsilon=0.3"]).loss.clip_high == 0.3


def test_num_generations_is_the_number_of_chains() -> None:
    assert make_config({"num_generations": 8, "rollout": {"num_rounds": 0}}).rollout.num_trees == 8
    with pytest.raises(UserError, match=r"num_rounds = 0"):
        make_config({"num_generations": 8})


@pytest.mark.parametrize("hops", ["multi-hop", "single-hop"])
def test_the_examples_for_three_billion_weights_have_the_settings_of_the_paper(hops: str) -> None:
    config = load_config(Path(f"examples/gpu/{hops}-3b-80gb.toml"))
    rollout, loss, optimizer, train = config.rollout, config.loss, config.optimizer, config.train
    assert (rollout.num_trees, rollout.num_expansions, rollout.num_rounds, rollout.num_kept_leaves) == (2, 2, 1, 3)
    assert (rollout.max_turns, rollout.max_prompt_tokens, rollout.max_turn_tokens) == (3, 2048, 500)
    assert (rollout.max_observation_tokens, rollout.max_context_tokens) == (500, 4096 + 500)
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, 0)
    assert (train.num_steps, train.prompts_per_step, train.prompts_per_minibatch, train.num_epochs) == (180, 512, 64, 1)
    assert (loss.clip_low, loss.clip_high, loss.dual_clip) == (0.2, 0.2, 3.0)
    assert (loss.kl_coef, loss.entropy_coef, loss.denominator) == (0.001, 0.001, "token-mean")
    assert loss.old_logprobs == "recomputed"
    assert (optimizer.learning_rate, optimizer.warmup_ratio, optimizer.schedule) == (1e-6, 0.285, "constant")
    assert (optimizer.weight_decay, optimizer.max_grad_norm) == (0.01, 1.0)
    assert config.environment.options["topk"] == 3
    assert (config.reward.functions, config.reward.structure, config.reward.final_format) == (["format"], 0.2, 0.1)
    assert tomllib.loads(dump_config(config))["advantage"]["estimator"] == "tree-grpo"


def test_flags_stand_for_keys_and_win() -> None:
    from treegrpo_cli.cli.settings import read_settings

    config = read_settings(
        ["model.path=a", "report_to=tensorboard", "output_dir=x"],
        model='b"\\',
        data="d",
        reward=["f1", "my.py:r"],
        output_dir="y",
        report_to=["none"],
    )
    assert (config.model.path, config.data.train, config.output_dir) == ('b"\\', "d", "y")
    assert (config.reward.functions, config.report_to) == (["f1", "my.py:r"], [])


@pytest.mark.parametrize("given", ["environment.stop=</act>", 'environment.stop=["</act>"]'])
def test_one_stop_string_is_a_list_of_one(given: str) -> None:
    assert load_config(None, [given]).environment.stop == ["</act>"]


@pytest.mark.parametrize("given", ['environment.stop=[""]', "environment.stop=3", 'environment.tool_errors="hide"'])
def test_what_the_environment_cannot_take_is_named(given: str) -> None:
    with pytest.raises(UserError, match=given.partition("=")[0].replace(".", r"\.")):
        load_config(None, [given])
