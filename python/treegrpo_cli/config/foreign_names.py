"""A setting's key -> the names under which people of TRL, transformers, peft and verl know it, and back."""

from __future__ import annotations

from treegrpo_cli.config.loss_spellings import CORRECTION
from treegrpo_cli.config.spellings import ACTOR, ROLLOUT, SAME

NEAR = {
    # TRL
    "num_generations": ("rollout.num_trees",),
    "delta": ("loss.dual_clip",),
    "use_vllm": ("sampler.engine",),
    "bf16": ("model.dtype",),
    "epsilon": ("loss.clip_low", "loss.clip_high"),
    "beta": ("loss.kl_coef",),
    "loss_type": ("loss.denominator",),
    "scale_rewards": ("advantage.scale",),
    "use_dynamic_sampling": ("advantage.dead_prompts",),
    "vllm_importance_sampling_correction": ("loss.importance_clip", "loss.old_logprobs"),
    "vllm_importance_sampling_mode": ("loss.importance_clip", "loss.old_logprobs"),
    "vllm_importance_sampling_clip_max": ("loss.importance_clip",),
    "vllm_importance_sampling_cap": ("loss.importance_clip",),
    # verl
    "data.train_files": ("data.train",),
    "data.val_files": ("data.eval",),
    f"{ACTOR}.clip_ratio": ("loss.clip_low", "loss.clip_high"),
    f"{ACTOR}.loss_agg_mode": ("loss.denominator",),
    f"{ACTOR}.tis_imp_ratio_cap": ("loss.importance_clip", "loss.old_logprobs"),
    f"{CORRECTION}.rollout_is": ("loss.importance_clip", "loss.old_logprobs"),
    f"{CORRECTION}.rollout_is_threshold": ("loss.importance_clip",),
    f"{CORRECTION}.bypass_mode": ("loss.old_logprobs",),
    f"{ROLLOUT}.name": ("sampler.engine",),
    f"{ROLLOUT}.top_k": ("rollout.top_k",),
    "algorithm.adv_estimator": ("advantage.estimator",),
    "algorithm.norm_adv_by_std_in_grpo": ("advantage.scale",),
    "algorithm.filter_groups.enable": ("advantage.dead_prompts",),
    "algorithm.filter_groups.max_num_gen_batches": ("train.max_gen_batches",),
    "trainer.save_freq": ("train.save_steps",),
    "trainer.test_freq": ("train.eval_steps",),
    "trainer.logger": ("report_to",),
}
"""Names whose values are another one's, or mean something beside others -> the keys that they set."""


def foreign_names(key: str) -> tuple[str, ...]:
    """What others call a setting.

    >>> foreign_names("loss.kl_coef")
    ('beta', 'actor_rollout_ref.actor.kl_loss_coef')
    """
    names = [name for name in {**SAME, **NEAR} if key in own_keys(name)]
    return tuple(sorted(names, key=lambda name: name.count(".")))


def own_keys(name: str) -> tuple[str, ...]:
    """The keys that somebody else's name sets here; none for a name that nobody uses."""
    ours = SAME.get(name, name)
    return NEAR.get(ours, (ours,) if name in SAME else ())
