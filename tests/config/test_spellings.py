"""Other people's names for settings are understood where they mean the same, and answered with ours where not."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from treegrpo_cli.config import Config
from treegrpo_cli.config.files import load_config, make_config
from treegrpo_cli.config.loss_spellings import TOGETHER
from treegrpo_cli.config.spellings import ANSWERED, CONVERTED, SAME
from treegrpo_cli.errors import UserError

CHAINS = "rollout.num_rounds=0"


def keys_of(table: type[BaseModel] = Config, prefix: str = "") -> set[str]:
    """Every dotted key that there is."""
    keys: set[str] = set()
    for name, field in table.model_fields.items():
        inner = field.annotation
        is_table = isinstance(inner, type) and issubclass(inner, BaseModel)
        keys |= keys_of(inner, f"{prefix}{name}.") if is_table else {prefix + name}
    return keys


def value_at(config: Config, key: str) -> Any:
    value: Any = config.model_dump()
    for part in key.split("."):
        value = value[part]
    return value


def test_every_name_of_ours_that_is_given_exists() -> None:
    free = ("num_generations", "environment.options.retriever_url", "environment.options.topk", "advantage.scale")
    assert set(SAME.values()) - keys_of() <= set(free)
    tables = "|".join(name for name in Config.model_fields if isinstance(getattr(Config(), name), BaseModel))
    for name, answer in ANSWERED.items():
        for key in re.findall(rf"\b(?:{tables})\.\w+", answer):
            assert key in keys_of() | set(free), f"{name}: {key}"
        assert "\n" not in answer
        assert len(answer) < 300


def test_no_name_is_in_two_tables_or_ours_already() -> None:
    assert not SAME.keys() & CONVERTED.keys()
    assert not SAME.keys() & ANSWERED.keys()
    assert not CONVERTED.keys() & ANSWERED.keys()
    assert not TOGETHER.keys() & (SAME.keys() | CONVERTED.keys() | ANSWERED.keys())
    assert not (SAME.keys() | CONVERTED.keys() | ANSWERED.keys() | TOGETHER.keys()) & keys_of()


@pytest.mark.parametrize("name", sorted(ANSWERED))
def test_a_name_without_a_counterpart_is_answered_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as refused:
        load_config(None, [f"{name}=1"])
    assert str(refused.value) == f"{name}: {ANSWERED[name]}"
    path = tmp_path / "c.yaml"
    path.write_text(f"seed: 1\n{nested_yaml(name.split('.'))}")
    with pytest.raises(UserError) as refused:
        load_config(path)
    assert str(refused.value).removeprefix(f"{path}: ") == f"{name}: {ANSWERED[name]}"


def nested_yaml(parts: list[str]) -> str:
    return "".join(f"{'  ' * depth}{part}:\n" for depth, part in enumerate(parts[:-1])) + (
        f"{'  ' * (len(parts) - 1)}{parts[-1]}: 1\n"
    )


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("lr=3e-6", "optimizer.learning_rate", 3e-6),
        ("lora_r=16", "model.lora_rank", 16),
        ("lora_alpha=8", "model.lora_alpha", 8.0),
        ("max_new_tokens=77", "rollout.max_turn_tokens", 77),
        ("torch_dtype=bfloat16", "model.dtype", "bfloat16"),
        ("bf16=true", "model.dtype", "bfloat16"),
        ("bf16=false", "model.dtype", "float32"),
        ("use_vllm=true", "sampler.engine", "vllm"),
        ("use_vllm=false", "sampler.engine", "transformers"),
        ("loss_type=dapo", "loss.denominator", "token-mean"),
        ("loss_type=grpo", "loss.denominator", "sequence-mean"),
        ("loss_type=dr_grpo", "loss.denominator", "constant"),
        ("loss_type=dr_grpo", "loss.denominator_constant", 512.0),
        ("beta=0.1", "loss.kl_ratio", True),
        ("beta=0", "loss.kl_ratio", False),
        ("use_bias_correction_kl=true", "loss.kl_ratio", True),
        ("actor_rollout_ref.actor.kl_loss_coef=0.1", "loss.kl_ratio", False),
        ("delta=1.2", "loss.dual_clip", 1.2),
        ("vllm_importance_sampling_correction=false", "loss.importance_clip", 0.0),
        ("vllm_importance_sampling_correction=false", "loss.old_logprobs", "recomputed"),
        ("vllm_importance_sampling_mode=token_truncate", "loss.importance_clip", 3.0),
        ("algorithm.rollout_correction.rollout_is=token", "loss.importance_clip", 2.0),
        ("algorithm.rollout_correction.rollout_is=null", "loss.importance_clip", 0.0),
        ("algorithm.rollout_correction.bypass_mode=True", "loss.old_logprobs", "sampler"),
        ("algorithm.rollout_correction.rollout_rs=null", "loss.old_logprobs", "auto"),
        ("actor_rollout_ref.actor.tis_imp_ratio_cap=2", "loss.importance_clip", 2.0),
        ("actor_rollout_ref.actor.tis_imp_ratio_cap=-1", "loss.importance_clip", 0.0),
        ("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean", "loss.denominator", "sequence-mean"),
        ("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum", "loss.denominator_constant", 1.0),
        ("scale_rewards=none", "advantage.scale", "none"),
        ("scale_rewards=true", "advantage.scale", "std"),
        ("output_dir=here", "output_dir", "here"),
        ('reward_funcs=["f1"]', "reward.functions", ["f1"]),
        ("data.train_files=a.parquet", "data.train", "a.parquet"),
        ('data.val_files=["b.parquet"]', "data.eval", "b.parquet"),
        ("data.train_batch_size=256", "train.prompts_per_step", 256),
        ("actor_rollout_ref.model.path=Qwen/x", "model.path", "Qwen/x"),
        ("actor_rollout_ref.actor.optim.lr=1e-5", "optimizer.learning_rate", 1e-5),
        ("+actor_rollout_ref.actor.optim.lr=1e-5", "optimizer.learning_rate", 1e-5),
        ("++actor_rollout_ref.actor.clip_ratio_c=4.0", "loss.dual_clip", 4.0),
        ("actor_rollout_ref.actor.clip_ratio=0.1", "loss.clip_low", 0.1),
        ("actor_rollout_ref.actor.clip_ratio=0.1", "loss.clip_high", 0.1),
        ("actor_rollout_ref.actor.loss_agg_mode=token-mean", "loss.denominator", "token-mean"),
        ("actor_rollout_ref.rollout.top_k=-1", "rollout.top_k", 0),
        ("actor_rollout_ref.rollout.top_k=5", "rollout.top_k", 5),
        ("actor_rollout_ref.rollout.name=hf", "sampler.engine", "transformers"),
        ("actor_rollout_ref.rollout.multi_turn.max_assistant_turns=9", "rollout.max_turns", 9),
        ("algorithm.adv_estimator=grpo", "advantage.estimator", "grpo"),
        ("algorithm.norm_adv_by_std_in_grpo=False", "advantage.scale", "none"),
        ("algorithm.norm_adv_by_std_in_grpo=false", "advantage.scale", "none"),
        ("algorithm.filter_groups.enable=True", "advantage.dead_prompts", "refill"),
        ("algorithm.filter_groups.enable=False", "advantage.dead_prompts", "keep"),
        ("algorithm.filter_groups.max_num_gen_batches=10", "train.max_gen_batches", 10),
        ("use_dynamic_sampling=true", "advantage.dead_prompts", "refill"),
        ("trainer.save_freq=-1", "train.save_steps", 0),
        ("trainer.test_freq=5", "train.eval_steps", 5),
        ('trainer.logger=["console","wandb"]', "report_to", ["wandb"]),
        ("trainer.default_local_dir=there", "output_dir", "there"),
        ("retriever.url=http://x/retrieve", "environment.options.retriever_url", "http://x/retrieve"),
        ("max_turns=4", "rollout.max_turns", 4),
    ],
)
def test_a_name_of_theirs_sets_ours(given: str, key: str, value: Any) -> None:
    assert value_at(load_config(None, [given]), key) == value


@pytest.mark.parametrize("name", ["num_generations", "actor_rollout_ref.rollout.n"])
def test_a_number_of_chains_is_the_number_of_trees_without_rounds(name: str) -> None:
    assert load_config(None, [f"{name}=5", CHAINS]).rollout.num_trees == 5
    with pytest.raises(UserError, match=r"num_generations counts chains"):
        load_config(None, [f"{name}=5"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("loss_type=bnpo", "loss_type: 'bnpo' is the mean of the micro-batches.*loss.denominator = \"token-mean\""),
        ("loss_type=cispo", "loss_type: 'cispo' is not offered; loss.denominator is token-mean"),
        ("delta=1.1", r"delta: 1.1 is below 1 \+ epsilon_high = 1.2, where TRL bounds positive advantages"),
        ("delta=x", "loss.dual_clip: expected a number above 1"),
        (
            "vllm_importance_sampling_correction=true",
            "correction: vllm_importance_sampling_mode: only token_truncate is",
        ),
        ("vllm_importance_sampling_cap=2", "cap: vllm_importance_sampling_mode: only token_truncate is offered"),
        ("vllm_importance_sampling_mode=sequence_mask", "mode: 'sequence_mask' is not offered; only token_truncate"),
        ("vllm_importance_sampling_clip_min=0.5", "clip_min: weights have an upper bound alone"),
        ("algorithm.rollout_correction.rollout_is=sequence", "rollout_is: 'sequence' is not offered"),
        ("algorithm.rollout_correction.rollout_is_threshold=3", "it bounds the weights of rollout_is = token"),
        ("algorithm.rollout_correction.rollout_rs=token_k1", "no token and no row is rejected"),
        ("entropy_coef=0.1", "entropy_coef: here it is loss.entropy_coef, under loss.denominator"),
        ("scale_rewards=batch", "scale_rewards: 'batch' is not offered; advantage.scale"),
        ("actor_rollout_ref.rollout.name=sglang", "'sglang' is not offered; sampler.engine is vllm or transformers"),
        ("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm", "is not offered; loss.denominator"),
        ('data.train_files=["a", "b"]', "data.train_files: data.train takes one file; join the 2 files"),
        ("actor_rollout_ref.ref.fsdp_config.param_offload=true", "no setting here does this"),
        ("algorithm.filter_groups.max_num_gen_batches=0", "max_num_gen_batches: 0 draws without end; give a number"),
        ("algorithm.filter_groups.metric=acc", "all its rewards are equal, whatever they are made of"),
        ("critic.optim.lr=1e-5", "there is no critic"),
        ("num_generations=eight", "num_trees: .*got 'eight'"),
        ("rollout=3", "rollout"),
    ],
)
def test_a_value_of_theirs_without_a_counterpart_is_answered(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        load_config(None, [CHAINS, given] if given != "rollout=3" else [given, "num_generations=2"])
    assert "\n" not in str(refused.value)


def test_the_command_line_wins_over_the_file_under_whatever_name(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("beta = 0.5\n[optimizer]\nlearning_rate = 1e-3\n")
    config = load_config(path, ["loss.kl_coef=0.25", "lr=2e-3"])
    assert (config.loss.kl_coef, config.optimizer.learning_rate) == (0.25, 2e-3)


def test_two_values_under_two_names_in_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("beta = 0.5\n[loss]\nkl_coef = 0.25\n")
    with pytest.raises(UserError, match=r"c\.toml: loss\.kl_coef: given twice, once under another name"):
        load_config(path)
    assert make_config({"beta": 0.5, "loss": {"kl_coef": 0.5}}).loss.kl_coef == 0.5


def test_a_verl_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "verl.yaml"
    path.write_text(
        "data: {train_files: t.parquet, train_batch_size: 8, max_prompt_length: 100, shuffle: false}\n"
        "actor_rollout_ref:\n"
        "  model: {path: m, enable_gradient_checkpointing: true}\n"
        "  actor: {ppo_mini_batch_size: 4, grad_clip: 0.5, optim: {lr: 1.0e-6}}\n"
        "  rollout: {n: 5, temperature: 0.9}\n"
        "rollout: {num_rounds: 0}\n"
        "trainer: {total_training_steps: 7}\n"
    )
    assert load_config(path) == make_config(
        {
            "data": {"train": "t.parquet", "shuffle": False},
            "model": {"path": "m", "gradient_checkpointing": True},
            "rollout": {"num_rounds": 0, "num_trees": 5, "temperature": 0.9, "max_prompt_tokens": 100},
            "train": {"prompts_per_step": 8, "prompts_per_minibatch": 4, "num_steps": 7},
            "optimizer": {"max_grad_norm": 0.5, "learning_rate": 1e-6},
        }
    )


def test_settings_of_the_environment_keep_the_names_that_it_gave_them() -> None:
    config = make_config({"environment": {"options": {"lr": 1, "critic": {"beta": 2}, "trainer": 3}}})
    assert config.environment.options == {"lr": 1, "critic": {"beta": 2}, "trainer": 3}


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        (["beta=0.1", "use_bias_correction_kl=false"], {"kl_coef": 0.1}),
        (["use_bias_correction_kl=false", "beta=0.1"], {"kl_coef": 0.1}),
        (["beta=0.1", "loss.kl_ratio=false"], {"kl_coef": 0.1}),
        (
            ["loss_type=dr_grpo", "loss.denominator_constant=64"],
            {"denominator": "constant", "denominator_constant": 64},
        ),
        (["epsilon_high=0.5", "epsilon=0.1", "delta=1.5"], {"clip_low": 0.1, "clip_high": 0.5, "dual_clip": 1.5}),
        (
            ["vllm_importance_sampling_mode=token_truncate", "vllm_importance_sampling_clip_max=5"],
            {"old_logprobs": "recomputed", "importance_clip": 5},
        ),
        (
            ["vllm_importance_sampling_cap=4", "vllm_importance_sampling_mode=token_truncate"],
            {"old_logprobs": "recomputed", "importance_clip": 4},
        ),
        (
            ["vllm_importance_sampling_mode=token_truncate", "vllm_importance_sampling_correction=False"],
            {"old_logprobs": "recomputed", "importance_clip": 0},
        ),
        (
            [
                "algorithm.rollout_correction.rollout_is=token",
                "algorithm.rollout_correction.rollout_is_threshold=1.5",
                "algorithm.rollout_correction.bypass_mode=False",
            ],
            {"old_logprobs": "recomputed", "importance_clip": 1.5},
        ),
    ],
)
def test_what_means_something_together_is_read_together(given: list[str], loss: dict[str, Any]) -> None:
    assert load_config(None, given) == make_config({"loss": loss})


@pytest.mark.parametrize(
    ("file", "given", "loss"),
    [
        ("beta = 0.5", ["use_bias_correction_kl=false"], {"kl_coef": 0.5}),
        ("use_bias_correction_kl = false", ["beta=0.5"], {"kl_coef": 0.5}),
        ("delta = 2.0", ["loss.dual_clip=3"], {"dual_clip": 3}),
        ("[loss]\ndual_clip = 2.0", ["delta=3"], {"dual_clip": 3}),
        (
            'vllm_importance_sampling_mode = "token_truncate"',
            ["vllm_importance_sampling_clip_max=2"],
            {"old_logprobs": "recomputed", "importance_clip": 2},
        ),
    ],
)
def test_the_command_line_goes_on_where_the_file_ends(
    tmp_path: Path, file: str, given: list[str], loss: dict[str, Any]
) -> None:
    path = tmp_path / "c.toml"
    path.write_text(file)
    assert load_config(path, given) == make_config({"loss": loss})


def test_a_bound_that_a_wider_clip_makes_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("delta = 1.25")
    assert load_config(path).loss.dual_clip == 1.25
    with pytest.raises(UserError, match=r"delta: 1.25 is below 1 \+ epsilon_high = 1.28"):
        load_config(path, ["epsilon_high=0.28"])
    path.write_text("delta = 2\n[loss]\ndual_clip = 3")
    with pytest.raises(UserError, match=r"c.toml: loss.dual_clip: given twice, once as delta"):
        load_config(path)


def test_groups_are_scaled_by_trl_s_own_deviation() -> None:
    assert load_config(None, ["scale_rewards=group"]).advantage.options == {"scale": "std", "eps": 1e-4}
    assert load_config(None, ["scale_rewards=group", "advantage.eps=1e-6"]).advantage.options["eps"] == 1e-6
    assert load_config(None, ["scale_rewards=false"]).advantage.options == {"scale": "none"}
