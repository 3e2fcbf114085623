"""A name in `metrics.jsonl` -> its unit and what it means; docs/reference/metrics.md is made of this.

Names are TRL's where the thing is the same; ours stand under prefixes of their own. In a name, words in capitals stand
for what differs: `D` a depth, `N` a number of tokens, `NAME` a reward function. Shares are from 0 to 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

TRAINED = "a token was trained on"
"""Steps in which every reward is equal train on none."""
EVALUATION = "an evaluation"
OVERLAP = "`scale.max_staleness` is above 0"
PLACES = {"NAME": r"[^/]+", "D": r"\d+", "N": r"\d+"}


class Metric(NamedTuple):
    """A metric, or those that differ in a place of their name alone."""

    name: str
    unit: str
    meaning: str
    when: str = ""
    """When a step's line has it; empty: always."""


METRICS: Mapping[str, Sequence[Metric]] = {
    "Rewards": (
        Metric("reward", "reward", "Mean over the scored leaves."),
        Metric("reward_std", "reward", "Mean over prompts of the standard deviation of their leaves' rewards."),
        Metric("frac_reward_zero_std", "share", "Prompts whose rewards are all equal, or that have none."),
        Metric("rewards/NAME/mean", "reward", "Mean of what a reward function gave, its weight aside."),
        Metric("rewards/NAME/std", "reward", "Standard deviation of the same over leaves."),
        Metric("true_reward", "reward", "Mean before rewards were flipped.", "`reward.flip` is above 0"),
        Metric("frac_rewards_flipped", "share", "Leaves whose reward was flipped.", "`reward.flip` is above 0"),
    ),
    "Completions": (
        Metric("completions/mean_length", "tokens", "Generated tokens on the path to a leaf, mean over leaves."),
        Metric("completions/clipped_ratio", "share", "Closed branches that ran into a limit of tokens."),
    ),
    "The update": (
        Metric("loss", "-", "Mean over the step's optimizer steps."),
        Metric("grad_norm", "-", "Norm of the gradient before it is clipped, mean over optimizer steps."),
        Metric("learning_rate", "-", "That of the last optimizer step."),
        Metric("entropy", "nats", "Of the policy's distribution, mean over trained tokens.", TRAINED),
        Metric("kl", "nats", "k3 estimate of the KL divergence to the reference.", "`loss.kl_coef` is above 0"),
        Metric("clip_ratio/low_mean", "share", "Tokens whose ratio was clipped from below.", TRAINED),
        Metric("clip_ratio/high_mean", "share", "The same from above.", TRAINED),
        Metric(
            "sampling/sampling_logp_difference/mean",
            "nats",
            "How far log-probabilities of engine and trainer are apart before any update: mean absolute difference. "
            "With `scale.max_staleness` it includes how far the policy has moved since a token was sampled.",
            TRAINED,
        ),
        Metric("sampling/sampling_logp_difference/max", "nats", "The greatest of these differences.", TRAINED),
        Metric(
            "sampling/importance_sampling_ratio/mean",
            "ratio",
            "Mean of the weights that make up for this difference.",
            "`loss.importance_clip` is in force",
        ),
        Metric(
            "sampling/importance_sampling_ratio/truncated",
            "share",
            "Tokens whose weight `loss.importance_clip` has cut.",
            "`loss.importance_clip` is in force",
        ),
        Metric(
            "staleness/mean",
            "steps",
            "How many steps the weights that sampled a trained token are behind those that train on it.",
            OVERLAP,
        ),
        Metric("staleness/max", "steps", "The greatest age of a trained token; never above the limit.", OVERLAP),
        Metric("staleness/frac_mixed_trees", "share", "Trained trees whose turns are of several versions.", OVERLAP),
        Metric("num_tokens", "tokens", "Tokens of all trees that the run has trained on so far."),
    ),
    "Trees": (
        Metric("tree/num_prompts", "count", "Prompts with trees, those drawn in place of dead ones included."),
        Metric("tree/num_dead_prompts", "count", "Those whose rewards are all equal, or that have none."),
        Metric("tree/num_nodes", "count", "Nodes, roots included."),
        Metric("tree/num_leaves", "count", "Leaves, unscored ones included."),
        Metric("tree/num_distinct_leaves", "count", "Leaves whose path holds other tokens than each before it."),
        Metric("tree/num_errors", "count", "Leaves that a tool or an environment closed by failing."),
        Metric("tree/num_pruned", "count", "Leaves that `stop_below` cut."),
        Metric("tree/generated_tokens", "tokens", "Tokens that the policy sampled, each counted once."),
        Metric("tree/sharing_ratio", "share", "1 - generated tokens / those on the paths of all leaves."),
        Metric("tree/intra_reward_std", "reward", "Mean over trees of the deviation of rewards within a tree."),
        Metric("tree/depth_mean", "turns", "Mean depth of the scored leaves that were learnt from."),
        Metric(
            "tree/prefix_cache_hit_ratio",
            "share",
            "Prompt tokens that the engine found in its cache.",
            "the engine tells",
        ),
        Metric("tree/num_tool_calls", "count", "Tools that ran."),
        Metric("tree/chain_tool_calls", "count", "Tools that would have run, had each leaf been played as a chain."),
        Metric("tree/num_failed_tool_calls", "count", "Those of them that raised."),
    ),
    "Signal": (
        Metric("tree/frac_zero_advantage_nodes", "share", "Turns with advantage 0, of those that were learnt from."),
        Metric("tree/abs_advantage_depth_D", "advantage", "Mean size of the advantage of turns at depth D."),
        Metric(
            "tree/abs_advantage_share_depth_D",
            "share",
            "What depth D has of the sum of sizes of all turns' advantages.",
        ),
        Metric("tree/comparisons_depth_D", "count", "Pairs of siblings at depth D that both have a value."),
        Metric("tree/decisive_comparisons_depth_D", "count", "Those of them whose values differ."),
        Metric("tree/gap_depth_D", "reward", "Mean difference of the values of such pairs."),
        Metric(
            "tree/abs_advantage_share_tokens_N",
            "share",
            "The same four by the tokens between the prompt and the turn: from N on, up to the next N there is "
            "(0, 1, 4, 16, 64, ...).",
        ),
        Metric("tree/comparisons_tokens_N", "count", "Pairs of siblings that begin so far behind the prompt."),
        Metric("tree/decisive_comparisons_tokens_N", "count", "Those of them whose values differ."),
        Metric("tree/gap_tokens_N", "reward", "Mean difference of their values."),
    ),
    "Every token once": (
        Metric("tree/attention_path", "text", "How the step was computed: `runs`, `depth-first`, `chains`, ..."),
        Metric("tree/computed_tokens", "tokens", "Tokens that one epoch computed."),
        Metric("tree/trained_tokens", "tokens", "Tokens that all epochs of the step computed."),
        Metric("tree/chain_tokens", "tokens", "Tokens of one row for each leaf, for comparison."),
        Metric("tree/self_check", "relative", "Greatest difference from rows computed alone.", "the path was checked"),
    ),
    "Expansions and budgets": (
        Metric("tree/num_expansions", "count", "Chains, the first of each tree aside."),
        Metric("tree/frac_expansions_alive", "share", "Expansions in prompts whose rewards differ."),
        Metric(
            "tree/num_rescue_expansions", "count", "Expansions behind the last round, for prompts of equal rewards."
        ),
        Metric("tree/num_rescue_prompts", "count", "Prompts that got any."),
        Metric("tree/num_rescued_prompts", "count", "Those of them whose rewards differ now."),
        Metric("tree/max_prompt_leaves", "count", "Leaves of the prompt that has most."),
        Metric("tree/num_refills", "count", "Prompts drawn in place of dead ones, failed ones included."),
        Metric("tree/num_discarded_prompts", "count", "Prompts that were grown and not trained on."),
        Metric("tree/discarded_tokens", "tokens", "Generated for them; the step's other counts hold these too."),
        Metric("tree/discarded_tool_calls", "count", "Tools that ran for them."),
        Metric("time/discarded", "seconds", "In which their trees grew, summed over prompts."),
        Metric("budget/step_tokens", "tokens", "Generated by the step's rollout."),
        Metric("budget/step_tool_calls", "count", "Tools that it ran."),
        Metric("budget/step_leaves", "count", "Leaves that it grew."),
        Metric("budget/step_seconds", "seconds", "From the start of its first tree to the end of its last."),
        Metric(
            "budget/withheld_expansions",
            "count",
            "Of the N·M·L of each prompt, those that were not started: a budget was spent, or no node was left.",
        ),
    ),
    "Failures": (
        Metric("failures/prompt", "share", "Prompts that could not be used, such as those that are too long."),
        Metric("failures/reset", "share", "Prompts for which the environment failed to start."),
        Metric("failures/tool", "share", "Branches that a failing tool closed."),
        Metric("failures/reward", "share", "Branches whose reward function failed."),
    ),
    "Time and memory": (
        Metric("step_time", "seconds", "The whole step."),
        Metric("time/rollout", "seconds", "Growing the trees; where they grow beside updates, waiting for them."),
        Metric("time/scoring", "seconds", "Rewards to advantages."),
        Metric("time/packing", "seconds", "Laying out what is trained on."),
        Metric("time/update", "seconds", "Forward, backward and optimizer steps."),
        Metric(
            "time/weights",
            "seconds",
            "Handing the weights to the engine, with its sleep and waking, or with the end of the turns in flight.",
        ),
        Metric("time/engine", "seconds", "In which the engine decoded, since the step before was written."),
        Metric("time/tools_waited", "seconds", "In which at least one tool was out."),
        Metric("time/tools_busy", "seconds", "The same, summed over calls."),
        Metric("time/rewards", "seconds", "Of reward functions, summed over calls."),
        Metric("time/selection", "seconds", "In which nodes to expand were chosen."),
        Metric(
            "engine/busy_share",
            "share",
            "`time/engine` over `time/rollout`, or over the whole step where trees grow in all of it.",
        ),
        Metric("tokens_per_second/generated", "tokens/s", "Generated tokens over the same time."),
        Metric("tokens_per_second/trained", "tokens/s", "`tree/trained_tokens` over `time/update`."),
        Metric("memory/peak_gib", "GiB", "The most that the process has held so far."),
        Metric("memory/peak_gpu_gib", "GiB", "The most that tensors on the GPU held in this step.", "on a GPU"),
    ),
    "Evaluation, on a line of its own": (
        Metric("eval/num_questions", "count", "Held-out questions that were asked.", EVALUATION),
        Metric("eval/NAME", "reward", "Mean of a reward function; beside several, `reward` is their sum.", EVALUATION),
        Metric("eval/NAME_low", "reward", "Lower bound of its 95% interval over questions.", EVALUATION),
        Metric("eval/NAME_high", "reward", "Upper bound of the same.", EVALUATION),
        Metric("time/evaluation", "seconds", "That the evaluation took.", EVALUATION),
    ),
}


def metric_of(name: str) -> Metric | None:
    """Return what a name in `metrics.jsonl` stands for, or None.

    >>> metric_of("tree/gap_depth_2").name, metric_of("tree/gaps")
    ('tree/gap_depth_D', None)
    """
    return next((metric for metric in all_metrics() if _pattern(metric.name).fullmatch(name)), None)


def all_metrics() -> Iterable[Metric]:
    """Yield every metric, narrow patterns before wide ones: `eval/NAME_low` before `eval/NAME`."""
    return sorted((metric for group in METRICS.values() for metric in group), key=lambda metric: -len(metric.name))


def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(rf"(?<![A-Z])({'|'.join(PLACES)})(?![A-Z])", name)
    return re.compile("".join(PLACES.get(part, re.escape(part)) for part in parts))
