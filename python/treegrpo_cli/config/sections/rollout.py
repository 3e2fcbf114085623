"""`[rollout]` of the settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from treegrpo_cli.config.sections.base import Count, CountOrNone, Positive, Section, Tokens, TokensOrNone

MAX_LEAVES = 10**6


class RolloutConfig(Section):
    """The shape of the trees, and how turns are sampled."""

    num_trees: Count = 2
    """Trees that are grown for each prompt: M in the paper. More trees compare more first turns, and cost as many more
    first chains."""
    num_expansions: CountOrNone = 2
    """Nodes that a round expands in each tree: N in the paper. Each expansion adds one leaf."""
    num_rounds: CountOrNone = 1
    """Rounds of expansions behind the first chain of a tree: L in the paper. 0 is chain GRPO: every tree is one chain.
    A tree has 1 + `num_expansions` * `num_rounds` leaves."""
    num_kept_leaves: CountOrNone = 0
    """Leaves that are kept and scored in each tree: K in the paper. 0 keeps all of them."""
    include_root: bool = True
    """Whether an expansion may start again from the prompt. `false` branches only after the first turn."""
    candidates: Literal["all", "root"] = "all"
    """Where expansions may start: `all` means at any turn that was continued, `root` only at the prompt, so that trees
    are chains side by side."""
    allocation: Literal["even", "uncertain"] = "even"
    """How the expansions of a round are dealt. `even` gives every tree `num_expansions`. With `uncertain` all prompts
    of a step share theirs, and those whose rewards disagree most so far get most."""
    allocation_kappa: Positive = 1.0
    """How many leaves the run's mean reward weighs as, where `allocation = "uncertain"` judges a prompt by its own few.
    Higher values trust a prompt's first rewards less."""
    rescue: Literal["none", "failed", "dead"] = "none"
    """Which prompts are expanded further after their last round. `failed`: those whose rewards are all equal and below
    the run's mean so far; `dead`: all whose rewards are all equal. They are branched where another outcome is
    likeliest."""
    max_rescues: Count = 8
    """Most expansions that `rescue` spends on one prompt, `num_expansions` at a time, until its rewards differ."""
    distinct_siblings: bool = False
    """Draw each turn of a node from the policy given that it is none of those drawn there before, token for token. It
    needs the estimator `state-loo` with `siblings = "distinct"`, whose weights account for it."""
    min_undrawn: Annotated[float, Field(ge=0.001, lt=1)] = 0.05
    """The least probability that must be left to draw at a node; where it is less, `distinct_siblings` draws none
    there."""
    max_turns: Count = 4
    """Most turns that the agent takes, its answer included. A rollout that reaches it ends there and is scored
    as it is."""
    max_prompt_tokens: Tokens = 4096
    """Longest prompt, in tokens. A longer one is left out and counted as a failure."""
    max_turn_tokens: Tokens = 500
    """Most tokens that one turn of the agent may have; it is cut there."""
    max_observation_tokens: Tokens = 500
    """Most tokens of one answer of a tool or the environment; a longer one is shortened."""
    max_context_tokens: TokensOrNone = 0
    """Most tokens of prompt, turns and observations together. 0 allows what the model and the other limits allow."""
    max_live_trees: Count = 256
    """Trees that grow at the same time. Fewer take less memory and may leave the engine idle; the trees stay the
    same."""
    schedule: Literal["free", "lock-step"] = "free"
    """When turns are sampled. `free` starts a turn as soon as its own tool has answered; with `lock-step` all chains
    sample, then all act. Both grow the same trees; `lock-step` repeats them to the bit."""
    temperature: Annotated[float, Field(ge=0.01, allow_inf_nan=False)] = 1.0
    """How freely tokens are drawn: 1 draws from the model's own distribution, lower values prefer likely tokens. vLLM
    takes 0.01 for everything below."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw only from the likeliest tokens that together have this probability; 1 draws from all. Training
    needs 1; evaluations take any."""
    top_k: TokensOrNone = 0
    """Draw only from this many of the likeliest tokens; 0 draws from all. Training needs 0."""
    entropies: bool = False
    """Keep the mean entropy of each turn in the tree file. It costs one more softmax a token, and is computed anyway
    where the selection rule or the estimator reads it."""

    @property
    def num_leaves(self) -> int:
        """Leaves a whole tree grows: 1 + N·L."""
        return 1 + self.num_expansions * self.num_rounds

    @property
    def leaves_kept(self) -> int:
        """Leaves kept a tree, with the default resolved."""
        return self.num_kept_leaves or self.num_leaves

    @property
    def context_tokens(self) -> int:
        """Tokens of the longest path that these limits allow; a model may have positions for less."""
        turns = self.max_turns * (self.max_turn_tokens + self.max_observation_tokens)
        return self.max_context_tokens or self.max_prompt_tokens + turns

    @model_validator(mode="after")
    def _kept_leaves_exist(self) -> RolloutConfig:
        if self.num_leaves > MAX_LEAVES:
            raise ValueError(
                f"1 + num_expansions * num_rounds is {self.num_leaves}; a tree has at most {MAX_LEAVES} leaves"
            )
        if self.candidates == "root" and not self.include_root:
            raise ValueError('candidates = "root" beside include_root = false leaves nothing to expand')
        if self.allocation == "uncertain" and self.num_leaves == 1:
            raise ValueError(
                'allocation = "uncertain" deals expansions, and there are none; set num_expansions and num_rounds '
                '(for chains, with candidates = "root")'
            )
        if self.num_kept_leaves and (self.allocation != "even" or self.rescue != "none"):
            name = f'rescue = "{self.rescue}"' if self.allocation == "even" else f'allocation = "{self.allocation}"'
            raise ValueError(f"{name} looks at the rewards of all leaves; leave num_kept_leaves out")
        if self.num_kept_leaves > self.num_leaves:
            raise ValueError(
                f"num_kept_leaves is {self.num_kept_leaves}, but a tree has at most "
                f"1 + num_expansions * num_rounds = {self.num_leaves} leaves"
            )
        if self.max_context_tokens and self.max_context_tokens <= 1:
            raise ValueError("max_context_tokens leaves no tokens for a turn")
        return self
