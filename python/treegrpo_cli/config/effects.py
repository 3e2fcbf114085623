"""Dotted keys -> those of settings that cannot change what a run yields, which may change while it goes on."""

from __future__ import annotations

from treegrpo_cli.config.sections.limits import LimitsConfig

CANNOT_CHANGE_THE_RESULT = frozenset(
    {
        "output_dir",
        "report_to",
        "advantage.timeout_s",
        "budget.run_tokens",
        "budget.run_tool_calls",
        "budget.run_seconds",
        "data.eval",
        "data.eval_split",
        "data.eval_limit",
        "environment.check_timeout_s",
        "environment.tool_timeout_s",
        "environment.tool_retries",
        "environment.max_concurrent_tools",
        "environment.workers",
        "model.chat_template_timeout_s",
        "model.gradient_checkpointing",
        *(f"limits.{name}" for name in LimitsConfig.model_fields),
        "reward.eval_function",
        "reward.timeout_s",
        "rollout.max_live_trees",
        "rollout.schedule",
        "selection.timeout_s",
        "sampler.urls",
        "sampler.api_key_env",
        "sampler.request_timeout_s",
        "sampler.request_retries",
        "sampler.server_wait_s",
        "sampler.weights_dir",
        "sampler.max_num_seqs",
        "sampler.gpu_memory_utilization",
        "sampler.kv_cache_bytes",
        "sampler.max_num_batched_tokens",
        "sampler.sleep",
        "sampler.enforce_eager",
        "scale.engines",
        "scale.trainer_ranks",
        "scale.tensor_parallel",
        "scale.placement",
        "scale.address",
        "train.microbatch_tokens",
        "train.num_threads",
        "train.eval_steps",
        "train.eval_tokens",
        "train.eval_samples",
        "train.save_steps",
        "train.max_checkpoints",
        "train.save_trees",
        "train.max_failed_fraction",
        "train.log_completions",
    }
)
"""Evaluation, timeouts, memory, loggers and files, which processes sample and train, and where a run ends."""


def without_effect() -> dict[str, set[str]]:
    """The same by section, those at the top left out, as `model_dump(exclude=...)` takes them."""
    sections: dict[str, set[str]] = {}
    for key in CANNOT_CHANGE_THE_RESULT:
        section, dot, name = key.partition(".")
        if dot:
            sections.setdefault(section, set()).add(name)
    return sections
