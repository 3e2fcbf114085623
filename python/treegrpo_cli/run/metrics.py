"""Metrics of a step -> `metrics.jsonl` and the loggers that the user asked for.

Names are TRL's where the thing is the same; ours stand under `tree/`. Lengths are in tokens, times in
seconds, log-probabilities, KL and entropy in nats.

    reward, reward_std, frac_reward_zero_std        mean, deviation in a prompt, share of dead prompts
    rewards/NAME/mean, rewards/NAME/std             of each reward function, over the leaves that it scored
    true_reward, frac_rewards_flipped               with reward.flip: before it; told as another, by chance
    completions/mean_length, /clipped_ratio         generated tokens of a leaf, share that ran into the limit
    loss, grad_norm                                 mean over the step's optimizer steps
    learning_rate                                   of the last of them
    kl, entropy                                     k3 against the reference; of the sampled distribution
    clip_ratio/low_mean, /high_mean                 share of the rows' tokens beyond the clip on either side
    sampling/sampling_logp_difference/mean, /max    |policy - sampling| before any update: engine mismatch
    sampling/importance_sampling_ratio/mean         of the weights that make up for it, and the share of tokens
    sampling/importance_sampling_ratio/truncated    whose weight loss.importance_clip has cut
    num_tokens, step_time                           tokens trained on so far, duration of the step
    tree/num_prompts, tree/num_dead_prompts         with trees, drawn later ones too; those whose rewards are all equal
    tree/num_refills                                prompts drawn in place of dead ones, failed ones too
    tree/num_discarded_prompts                      not trained on; what they took is part of the step's other counts:
    tree/discarded_tokens, /discarded_tool_calls    sampled for them, and tools that ran; time/discarded: summed seconds
    budget/step_tokens, /step_tool_calls, /step_leaves, /step_seconds    what the step's rollout took
    budget/withheld_expansions                      of N·M·L a prompt, not started: a budget was spent, no node was left
    tree/num_expansions, tree/max_prompt_leaves     chains but for the first of each tree; leaves of the largest prompt
    tree/num_rescue_expansions                      of them behind the last round, for prompts with equal rewards
    tree/num_rescue_prompts, /num_rescued_prompts   prompts that got any, and those whose rewards differ now
    tree/frac_expansions_alive                      share of them in prompts whose rewards differ
    tree/num_nodes, tree/num_leaves, tree/depth_mean, tree/sharing_ratio, tree/frac_zero_advantage_nodes,
    tree/intra_reward_std, tree/prefix_cache_hit_ratio, and signal by depth
    tree/comparisons_depth_D, tree/gap_depth_D      pairs of siblings that have a value, mean difference of their values
    tree/decisive_comparisons_depth_D               those that differ; a chain's turns have siblings at depth 1 alone
    tree/abs_advantage_share_depth_D                of the sum of |advantage| over turns
    tree/..._tokens_N                               the same by tokens between prompt and turn: from 0, 1, 4, 16, ...
    tree/computed_tokens, tree/chain_tokens         tokens that an epoch forwards, and those of one row a leaf
    tree/trained_tokens                             tokens that all epochs of the step forwarded
    tree/attention_path, tree/self_check            how (see planner), and how far from rows alone, where checked
    tree/num_tool_calls, tree/num_failed_tool_calls tools that ran, and those of them that raised
    tree/chain_tool_calls                           those that the same leaves had taken as chains
    failures/prompt, /reset                         share of prompts that failed: too long and the like; no start
    failures/tool, /reward                          share of branches that a tool closed; whose reward failed
    time/rollout, /scoring, /packing, /update, /weights, /evaluation    seconds of each piece of the step
    time/tools_waited, time/tools_busy              in which a tool was out; summed over the calls. time/rewards: summed
    time/selection                                  in which the nodes to expand were chosen
    time/engine, engine/busy_share                  in which the engine decoded; that over time/rollout
    tokens_per_second/generated, /trained           sampled, over time/rollout; forwarded, over time/update
    memory/peak_gib, memory/peak_gpu_gib            of the process so far; of the GPU's tensors in this step
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from treegrpo_cli.errors import FileError, said
from treegrpo_cli.run.loggers import Metrics, make_logger
from treegrpo_cli.run.samples import Sample


class MetricsLog:
    """Writes one JSON object a step to `output_dir/metrics.jsonl`, and the same to the loggers.

    `resumed_step` is the step that a resumed run goes on from (None: a new run). Raises FileError where the file
    cannot be written, UserError for a logger whose package is missing.
    """

    def __init__(
        self,
        output_dir: str | Path,
        report_to: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        resumed_step: int | None = None,
    ) -> None:
        self.path = Path(output_dir) / "metrics.jsonl"
        self._loggers = [make_logger(name, self.path.parent, config or {}, resumed_step) for name in report_to]
        try:
            self._file = open(self.path, "ab")  # noqa: SIM115  open as long as the run
        except OSError as error:
            raise FileError(self.path, said(error)) from None

    def log(self, step: int, metrics: Metrics) -> None:
        """Append a step's metrics, flushed. A value that is not finite becomes null."""
        try:
            self._file.write(orjson.dumps({"step": step, **metrics}, option=orjson.OPT_APPEND_NEWLINE))
            self._file.flush()
        except OSError as error:
            raise FileError(self.path, said(error)) from None
        for logger in self._loggers:
            logger.log(step, metrics)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Hand some of a step's completions to the loggers; the step's tree file has all of them."""
        for logger in self._loggers:
            logger.log_samples(step, samples)

    def close(self) -> None:
        """Close file and loggers."""
        self._file.close()
        for logger in self._loggers:
            logger.close()
