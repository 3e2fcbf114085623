"""Names that TRL, transformers, peft and verl give to settings -> ours, or one line that says what there is here.

One table a kind: `SAME` where only the name differs, `CONVERTED` where the value does too (`loss_spellings.TOGETHER`:
by what else is given), `ANSWERED` where nothing here means the same. A name stands as its users type it, with its
sections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from treegrpo_cli.config.loss_spellings import TOGETHER
from treegrpo_cli.errors import UserError

Pair = tuple[str, Any]
"""(dotted key, value)."""

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"

SAME = {
    # TRL, transformers, peft
    "use_bias_correction_kl": "loss.kl_ratio",
    "epsilon_high": "loss.clip_high",
    "importance_sampling_level": "loss.ratio",
    "num_iterations": "train.num_epochs",
    "max_steps": "train.num_steps",
    "eval_steps": "train.eval_steps",
    "save_steps": "train.save_steps",
    "save_total_limit": "train.max_checkpoints",
    "log_completions": "train.log_completions",
    "learning_rate": "optimizer.learning_rate",
    "lr": "optimizer.learning_rate",
    "weight_decay": "optimizer.weight_decay",
    "adam_beta1": "optimizer.beta1",
    "adam_beta2": "optimizer.beta2",
    "warmup_steps": "optimizer.warmup_steps",
    "warmup_ratio": "optimizer.warmup_ratio",
    "lr_scheduler_type": "optimizer.schedule",
    "max_grad_norm": "optimizer.max_grad_norm",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "top_k": "rollout.top_k",
    "max_prompt_length": "rollout.max_prompt_tokens",
    "max_new_tokens": "rollout.max_turn_tokens",
    "max_turns": "rollout.max_turns",
    "vllm_max_model_length": "rollout.max_context_tokens",
    "vllm_gpu_memory_utilization": "sampler.gpu_memory_utilization",
    "vllm_enable_sleep_mode": "sampler.sleep",
    "gradient_checkpointing": "model.gradient_checkpointing",
    "model_name_or_path": "model.path",
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "lora_r": "model.lora_rank",
    "lora_alpha": "model.lora_alpha",
    "lora_dropout": "model.lora_dropout",
    "lora_target_modules": "model.lora_target_modules",
    "dataset_name": "data.train",
    "dataset_train_split": "data.split",
    "dataset_test_split": "data.eval_split",
    "shuffle_dataset": "data.shuffle",
    "reward_funcs": "reward.functions",
    "reward_weights": "reward.weights",
    # verl
    "data.train_batch_size": "train.prompts_per_step",
    "data.max_prompt_length": "rollout.max_prompt_tokens",
    "actor_rollout_ref.model.path": "model.path",
    "actor_rollout_ref.model.lora_rank": "model.lora_rank",
    "actor_rollout_ref.model.lora_alpha": "model.lora_alpha",
    "actor_rollout_ref.model.target_modules": "model.lora_target_modules",
    "actor_rollout_ref.model.enable_gradient_checkpointing": "model.gradient_checkpointing",
    f"{ACTOR}.optim.lr": "optimizer.learning_rate",
    f"{ACTOR}.optim.lr_warmup_steps": "optimizer.warmup_steps",
    f"{ACTOR}.optim.lr_warmup_steps_ratio": "optimizer.warmup_ratio",
    f"{ACTOR}.optim.weight_decay": "optimizer.weight_decay",
    f"{ACTOR}.ppo_mini_batch_size": "train.prompts_per_minibatch",
    f"{ACTOR}.ppo_max_token_len_per_gpu": "train.microbatch_tokens",
    f"{ACTOR}.ppo_epochs": "train.num_epochs",
    f"{ACTOR}.clip_ratio_low": "loss.clip_low",
    f"{ACTOR}.clip_ratio_high": "loss.clip_high",
    f"{ACTOR}.clip_ratio_c": "loss.dual_clip",
    f"{ACTOR}.entropy_coeff": "loss.entropy_coef",
    f"{ACTOR}.kl_loss_coef": "loss.kl_coef",
    f"{ACTOR}.grad_clip": "optimizer.max_grad_norm",
    f"{ROLLOUT}.temperature": "rollout.temperature",
    f"{ROLLOUT}.top_p": "rollout.top_p",
    f"{ROLLOUT}.dtype": "model.dtype",
    f"{ROLLOUT}.gpu_memory_utilization": "sampler.gpu_memory_utilization",
    f"{ROLLOUT}.enforce_eager": "sampler.enforce_eager",
    f"{ROLLOUT}.free_cache_engine": "sampler.sleep",
    f"{ROLLOUT}.max_num_batched_tokens": "sampler.max_num_batched_tokens",
    f"{ROLLOUT}.max_num_seqs": "sampler.max_num_seqs",
    f"{ROLLOUT}.max_model_len": "rollout.max_context_tokens",
    f"{ROLLOUT}.multi_turn.max_assistant_turns": "rollout.max_turns",
    f"{ROLLOUT}.n": "num_generations",
    "trainer.total_training_steps": "train.num_steps",
    "trainer.default_local_dir": "output_dir",
    "retriever.url": "environment.options.retriever_url",
    "retriever.topk": "environment.options.topk",
}
"""Their name -> ours; the values mean the same. `num_generations` and `delta` are resolved last: see `files.py`."""


def _one_of(ours: str, values: dict[Any, Any], instead: str = "") -> Callable[[Any], list[Pair]]:
    """A converter by a table of values; another value is answered with `instead`, or kept as it is."""

    def convert(value: Any) -> list[Pair]:
        value = {"True": True, "False": False}.get(str(value), value)  # as Hydra's users write them
        known = isinstance(value, str | bool | int) and value in values
        if not known and instead:
            raise UserError(f"{value!r:.60} is not offered; {instead}")
        return [(ours, values[value] if known else value)]

    return convert


def _one_file(ours: str) -> Callable[[Any], list[Pair]]:
    def convert(value: Any) -> list[Pair]:
        files = value if isinstance(value, list) else [value]
        if len(files) != 1:
            raise UserError(f"{ours} takes one file; join the {len(files)} files")
        return [(ours, files[0])]

    return convert


def _loggers(value: Any) -> list[Pair]:
    names = value if isinstance(value, list) else [value]
    return [("report_to", [name for name in names if name != "console"])]


def _gen_batches(value: Any) -> list[Pair]:
    if isinstance(value, int) and value <= 0:
        raise UserError(f"{value} draws without end; give a number of batches, the first one counted")
    return [("train.max_gen_batches", value)]


SCALES = {True: "std", False: "none"}
REFILLS = {True: "refill", False: "keep"}
ENGINES = "sampler.engine is vllm or transformers"

CONVERTED: dict[str, Callable[[Any], list[Pair]]] = {
    "use_vllm": _one_of("sampler.engine", {True: "vllm", False: "transformers"}),
    "bf16": _one_of("model.dtype", {True: "bfloat16", False: "float32"}),
    "data.train_files": _one_file("data.train"),
    "data.val_files": _one_file("data.eval"),
    f"{ACTOR}.clip_ratio": lambda value: [("loss.clip_low", value), ("loss.clip_high", value)],
    f"{ROLLOUT}.name": _one_of("sampler.engine", {"vllm": "vllm", "hf": "transformers"}, ENGINES),
    f"{ROLLOUT}.top_k": _one_of("rollout.top_k", {-1: 0}),
    "algorithm.adv_estimator": _one_of("advantage.estimator", {}),
    "algorithm.norm_adv_by_std_in_grpo": _one_of("advantage.scale", SCALES),
    "algorithm.filter_groups.enable": _one_of("advantage.dead_prompts", REFILLS),
    "algorithm.filter_groups.max_num_gen_batches": _gen_batches,
    "use_dynamic_sampling": _one_of("advantage.dead_prompts", REFILLS),
    "trainer.save_freq": _one_of("train.save_steps", {-1: 0}),
    "trainer.test_freq": _one_of("train.eval_steps", {-1: 0}),
    "trainer.logger": _loggers,
    # our own, of earlier versions
    "rollout.replacement": lambda value: [] if value is True else [("selection.replacement", value)],
}
"""Their name -> what their value is in ours."""

MICRO_BATCHES = "a step is cut into micro-batches of train.microbatch_tokens, which changes memory and never the result"
PROMPTS = "here it is train.prompts_per_step, which counts prompts, not completions"
COMPLETION = (
    "here each turn has rollout.max_turn_tokens, each observation rollout.max_observation_tokens, "
    "and all of a rollout with its prompt rollout.max_context_tokens"
)
EPOCHS = (
    "here train.num_steps counts steps of train.prompts_per_step prompts: passes * questions / train.prompts_per_step"
)
ONE_GPU = "this runs on one device, model.device"
NO_KL_REWARD = "the KL is a term of the loss: loss.kl_coef"

ANSWERED = {
    # TRL, transformers, peft
    "per_device_train_batch_size": f"{PROMPTS}; {MICRO_BATCHES}",
    "per_device_eval_batch_size": "evaluation decodes as many at once as rollouts do: sampler.max_num_seqs",
    "generation_batch_size": PROMPTS,
    "steps_per_generation": "it is train.prompts_per_step / train.prompts_per_minibatch",
    "gradient_accumulation_steps": MICRO_BATCHES,
    "auto_find_batch_size": MICRO_BATCHES,
    "max_completion_length": f"{COMPLETION}; what loss_type = dr_grpo divides by is loss.denominator_constant",
    "entropy_coef": "here it is loss.entropy_coef, under loss.denominator; TRL's is always a mean over tokens",
    "top_entropy_quantile": "all sampled tokens are trained",
    "max_tool_calling_iterations": "here it is rollout.max_turns, which counts the answer too",
    "num_train_epochs": EPOCHS,
    "logging_steps": "every step is logged, to metrics.jsonl and to report_to",
    "logging_first_step": "every step is logged, to metrics.jsonl and to report_to",
    "logging_strategy": "every step is logged, to metrics.jsonl and to report_to",
    "logging_dir": "all that a run leaves is in output_dir",
    "save_strategy": "here it is train.save_steps",
    "eval_strategy": "here it is train.eval_steps; 0 is never",
    "evaluation_strategy": "here it is train.eval_steps; 0 is never",
    "do_eval": "here it is train.eval_steps; 0 is never",
    "resume_from_checkpoint": "give the flag --resume",
    "overwrite_output_dir": "nothing is overwritten; give another output_dir",
    "optim": "the optimizer is AdamW; its settings are those of [optimizer]",
    "adam_epsilon": "it is that of torch.optim.AdamW, and no setting",
    "fp16": "model.dtype is float32 or bfloat16",
    "use_peft": "model.lora_rank above 0 trains adapters",
    "load_in_4bit": "weights are not quantised; model.lora_rank above 0 trains adapters",
    "load_in_8bit": "weights are not quantised; model.lora_rank above 0 trains adapters",
    "trust_remote_code": "code of model folders is never run",
    "remove_unused_columns": "every column reaches reward and environment",
    "deepspeed": ONE_GPU,
    "fsdp": ONE_GPU,
    "vllm_mode": "the engine runs in the same process, on a share of sampler.gpu_memory_utilization",
    "vllm_tensor_parallel_size": ONE_GPU,
    "sync_ref_model": "the reference stays the model at the start; loss.kl_coef weighs it",
    "push_to_hub": "nothing is uploaded; checkpoints are in output_dir",
    # verl
    "data.max_response_length": COMPLETION,
    "data.val_batch_size": "evaluation decodes as many at once as rollouts do: sampler.max_num_seqs",
    "data.return_raw_chat": "rows of messages are read as they are",
    f"{ACTOR}.ppo_micro_batch_size": MICRO_BATCHES,
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": MICRO_BATCHES,
    f"{ACTOR}.use_dynamic_bsz": MICRO_BATCHES,
    f"{ACTOR}.use_kl_loss": "loss.kl_coef above 0 turns it on",
    f"{ACTOR}.kl_loss_type": "the KL is verl's low_var_kl, weighed by loss.kl_coef",
    f"{ROLLOUT}.calculate_log_probs": "the sampler's log-probabilities are always kept",
    f"{ROLLOUT}.tensor_model_parallel_size": ONE_GPU,
    f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": MICRO_BATCHES,
    "algorithm.filter_groups": "a prompt is left out where all its rewards are equal, whatever they are made of",
    "data.gen_batch_size": "fresh prompts are drawn one for each that is missing of train.prompts_per_step",
    "algorithm.use_kl_in_reward": NO_KL_REWARD,
    "algorithm.kl_ctrl": NO_KL_REWARD,
    "trainer.total_epochs": EPOCHS,
    "trainer.n_gpus_per_node": ONE_GPU,
    "trainer.nnodes": ONE_GPU,
    "trainer.val_before_train": "train.eval_steps above 0 evaluates before the first step too",
    "trainer.resume_mode": "give the flag --resume",
    "custom_reward_function": 'here it is reward.functions = ["path/to/file.py:name"]',
    "reward_model": 'rewards are functions: reward.functions = ["path/to/file.py:name"]',
    "critic": "there is no critic: advantages come from the tree",
    "actor_rollout_ref": "no setting here does this; --dry-run prints all that there are",
    "trainer": "no setting here does this; --dry-run prints all that there are",
    "algorithm": "no setting here does this; advantage.estimator and its options stand in [advantage]",
}
"""Their name, or a section of theirs -> what to do instead."""


def in_our_words(pairs: Iterable[Pair], known: Mapping[str, Any] | None = None) -> Iterator[Pair]:
    """Yield every setting under our name; those that are nobody's or ours already as they are.

    `known` are settings that stand already, under our names: some of theirs mean something only beside others. Raises
    UserError for a setting that has no counterpart here, with what there is.
    """
    pairs = [(key.lstrip("+"), value) for key, value in pairs]
    given = {**(known or {}), **dict(pairs)}
    for key, value in pairs:
        if key in SAME:
            yield SAME[key], value
        elif key in CONVERTED or key in TOGETHER:
            try:
                yield from TOGETHER[key](value, given) if key in TOGETHER else CONVERTED[key](value)
            except UserError as error:
                raise UserError(str(error) if str(error).startswith(key) else f"{key}: {error}") from None
        elif answer := answer_to(key):
            raise UserError(f"{key}: {answer}")
        else:
            yield key, value


def is_foreign(key: str) -> bool:
    """Whether `in_our_words` would do anything to a dotted key."""
    return key in SAME or key in CONVERTED or key in TOGETHER or bool(answer_to(key))


def answer_to(key: str) -> str | None:
    """What to do in place of a name that means nothing here, or of the nearest section that it stands in."""
    while key:
        if key in ANSWERED:
            return ANSWERED[key]
        key = key.rpartition(".")[0]
    return None
