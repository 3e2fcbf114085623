"""What TRL and verl call the parts of their losses -> `[loss]`, where together they mean the same; else why not.

One of their settings often means something only beside others, and some of their defaults are not ours: `TOGETHER`
has converters that see all that is given. Compared with TRL 1.16 in `tests/train/test_trl.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from treegrpo_cli.config.sections.loss import LossConfig
from treegrpo_cli.errors import UserError

Pair = tuple[str, Any]
"""(dotted key, value)."""
Given = Mapping[str, Any]
"""All that is set beside it, under their names or ours."""

ACTOR, CORRECTION = "actor_rollout_ref.actor", "algorithm.rollout_correction"

TRL_COMPLETION_TOKENS = 512
"""TRL's default of `max_completion_length`, by which its `dr_grpo` divides."""
TRL_SCALE_EPS = 1e-4
"""What TRL adds to the standard deviation of a group."""
TRL_CLIP_MAX, VERL_THRESHOLD = 3.0, 2.0
"""Their defaults of what is `loss.importance_clip` here."""

DENOMINATORS = "loss.denominator is token-mean, sequence-mean or constant"
ONE_MODE = (
    "vllm_importance_sampling_mode: only token_truncate is offered (TRL's default is sequence_mask): "
    "loss.importance_clip bounds the weight of each token, none is dropped and none is a whole row's"
)


def _epsilon(value: Any, given: Given) -> list[Pair]:
    """TRL's upper side is the lower one's, unless set."""
    upper = [] if "epsilon_high" in given else [("loss.clip_high", value)]
    return [("loss.clip_low", value), *upper]


def _beta(value: Any, given: Given) -> list[Pair]:
    """TRL multiplies the KL by the ratio unless `use_bias_correction_kl` says otherwise."""
    is_said = value == 0 or "use_bias_correction_kl" in given or "loss.kl_ratio" in given
    return [("loss.kl_coef", value), *([] if is_said else [("loss.kl_ratio", True)])]


def _loss_type(value: Any, given: Given) -> list[Pair]:
    if value == "dr_grpo":
        is_said = "loss.denominator_constant" in given
        constant = [] if is_said else [("loss.denominator_constant", TRL_COMPLETION_TOKENS)]
        return [("loss.denominator", "constant"), *constant]
    if value == "bnpo":
        raise UserError(
            "'bnpo' is the mean of the micro-batches' token means and changes with their size, which here changes no "
            'result; loss.denominator = "token-mean" (dapo) is the same where a step is one micro-batch'
        )
    return _one_of("loss.denominator", {"dapo": "token-mean", "grpo": "sequence-mean"}, DENOMINATORS)(value, given)


def _loss_agg_mode(value: Any, given: Given) -> list[Pair]:
    """A sum over a row's tokens and a mean over rows is a constant of one token a row."""
    if value == "seq-mean-token-sum":
        return [("loss.denominator", "constant"), ("loss.denominator_constant", 1)]
    modes = {"token-mean": "token-mean", "seq-mean-token-mean": "sequence-mean"}
    return _one_of("loss.denominator", modes, DENOMINATORS)(value, given)


def _scale_rewards(value: Any, given: Given) -> list[Pair]:
    value = {"True": True, "False": False}.get(str(value), value)
    if value not in (True, "group"):
        scales = {False: "none", "none": "none"}
        return _one_of("advantage.scale", scales, "advantage.scale is std (of the group) or none")(value, given)
    eps = [] if "advantage.eps" in given else [("advantage.eps", TRL_SCALE_EPS)]
    return [("advantage.scale", "std"), *eps]


def _one_of(key: str, values: dict[Any, str], instead: str) -> Callable[[Any, Given], list[Pair]]:
    def convert(value: Any, given: Given) -> list[Pair]:
        if not isinstance(value, str | bool) or value not in values:
            raise UserError(f"{value!r:.60} is not offered; {instead}")
        return [(key, values[value])]

    return convert


def _is_off(value: Any) -> bool:
    return value in (None, False, "null", "None", "False")


def _weights(bound: Any) -> list[Pair]:
    return [("loss.old_logprobs", "recomputed"), ("loss.importance_clip", bound)]


def _correction(value: Any, given: Given) -> list[Pair]:
    if _is_off(value):
        return _weights(0)
    if "vllm_importance_sampling_mode" in given or "loss.importance_clip" in given:
        return []
    raise UserError(ONE_MODE)


def _correction_mode(value: Any, given: Given) -> list[Pair]:
    if value != "token_truncate":
        raise UserError(f"{value!r:.60} is not offered; {ONE_MODE.partition(': ')[2]}")
    if _is_off(given.get("vllm_importance_sampling_correction", True)):
        return []
    bounds = [given[name] for name in _BOUNDS if name in given]
    return _weights(bounds[0] if bounds else TRL_CLIP_MAX)


def _correction_bound(value: Any, given: Given) -> list[Pair]:
    """Said with the mode, or bounding what an earlier source has turned on."""
    if value is None:
        raise UserError("weights need a bound; loss.importance_clip is one")
    if "vllm_importance_sampling_mode" in given:
        return []
    if "loss.importance_clip" in given:
        return [("loss.importance_clip", value)]
    raise UserError(ONE_MODE)


_BOUNDS = ("vllm_importance_sampling_clip_max", "vllm_importance_sampling_cap")


def _rollout_is(value: Any, given: Given) -> list[Pair]:
    if _is_off(value):
        return [("loss.importance_clip", 0)]
    if value != "token":
        raise UserError(f"{value!r:.60} is not offered; loss.importance_clip bounds the weight of each token (token)")
    return _weights(given.get(f"{CORRECTION}.rollout_is_threshold", VERL_THRESHOLD))


def _rollout_is_threshold(value: Any, given: Given) -> list[Pair]:
    if f"{CORRECTION}.rollout_is" in given:
        return []
    if "loss.importance_clip" in given:
        return [("loss.importance_clip", value)]
    raise UserError("it bounds the weights of rollout_is = token, which is not given; loss.importance_clip is both")


def _bypass_mode(value: Any, given: Given) -> list[Pair]:
    """Whether the ratio is to the sampler's log-probabilities as they are."""
    return [("loss.old_logprobs", "recomputed" if _is_off(value) else "sampler")]


def _cap(value: Any, given: Given) -> list[Pair]:
    """verl's first name for it; -1 is off."""
    return [("loss.importance_clip", 0)] if value == -1 or _is_off(value) else _weights(value)


def _only_off(instead: str) -> Callable[[Any, Given], list[Pair]]:
    def convert(value: Any, given: Given) -> list[Pair]:
        if not _is_off(value):
            raise UserError(instead)
        return []

    return convert


NO_REJECTION = "no token and no row is rejected; loss.importance_clip bounds the weight of each token"

TOGETHER: dict[str, Callable[[Any, Given], list[Pair]]] = {
    # TRL
    "epsilon": _epsilon,
    "beta": _beta,
    "loss_type": _loss_type,
    "scale_rewards": _scale_rewards,
    "vllm_importance_sampling_correction": _correction,
    "vllm_importance_sampling_mode": _correction_mode,
    "vllm_importance_sampling_clip_max": _correction_bound,
    "vllm_importance_sampling_cap": _correction_bound,
    "vllm_importance_sampling_clip_min": _only_off("weights have an upper bound alone: loss.importance_clip"),
    "off_policy_mask_threshold": _only_off(NO_REJECTION),
    # verl
    f"{ACTOR}.loss_agg_mode": _loss_agg_mode,
    f"{ACTOR}.tis_imp_ratio_cap": _cap,
    f"{CORRECTION}.rollout_is": _rollout_is,
    f"{CORRECTION}.rollout_is_threshold": _rollout_is_threshold,
    f"{CORRECTION}.rollout_is_batch_normalize": _only_off("weights are not normalised by their mean"),
    f"{CORRECTION}.rollout_rs": _only_off(NO_REJECTION),
    f"{CORRECTION}.rollout_rs_threshold": _only_off(NO_REJECTION),
    f"{CORRECTION}.bypass_mode": _bypass_mode,
}
"""Their name -> what its value is in ours, beside all else that is given."""


def settle_delta(tree: dict[str, Any]) -> None:
    """Replace TRL's `delta` at the top of a tree of settings by `loss.dual_clip`, where it is the same.

    TRL bounds the ratio by it and clips beside: max(min(rho, delta), c) of a negative advantage, where the dual clip is
    min(max(rho, c), delta). They agree from the clip's upper side on; below it TRL's bound binds positive advantages
    too, and negative ones are clipped above it.
    """
    if "delta" not in tree:
        return
    loss, delta = tree.setdefault("loss", {}), tree.pop("delta")
    if not isinstance(loss, dict):
        return
    delta = 0 if delta is None else delta
    if loss.setdefault("dual_clip", delta) != delta:
        raise UserError("loss.dual_clip: given twice, once as delta")
    clip_high = loss.get("clip_high", LossConfig().clip_high)
    both_are_numbers = all(isinstance(value, int | float) for value in (delta, clip_high))
    if both_are_numbers and delta != 0 and delta < 1 + clip_high - 1e-9:
        raise UserError(
            f"delta: {delta:g} is below 1 + epsilon_high = {1 + clip_high:g}, where TRL bounds positive advantages by "
            "it too; from there on it is loss.dual_clip"
        )
