"""`[budget]` of the settings."""

from __future__ import annotations

from treegrpo_cli.config.sections.base import NonNegative, NonNegativeInt, Section


class BudgetConfig(Section):
    """What may be spent; 0 = no limit.

    Of a prompt: the first chain of each tree always runs. Before each round its trees are counted together: once
    a limit is reached no further expansion starts, and chains that run end as they would.
    """

    prompt_tokens: NonNegativeInt = 0
    """Most tokens generated for one prompt, those of a shared turn counted once; 0 sets no limit."""
    prompt_tool_calls: NonNegativeInt = 0
    """Most tool calls made for one prompt; 0 sets no limit."""
    prompt_leaves: NonNegativeInt = 0
    """Most leaves grown for one prompt, scored or not; 0 sets no limit. The last round starts just as many chains as
    are left."""
    prompt_seconds: NonNegative = 0.0
    """Most seconds spent on the chains and rewards of one prompt; 0 sets no limit. Trees then depend on how fast the
    machine is."""
    step_tokens: NonNegativeInt = 0
    """Most tokens generated in one step, those of prompts that were thrown away included; 0 sets no limit. A step is
    counted before each wave of expansions, and before fresh prompts are drawn: once a limit is reached, none is
    started."""
    step_tool_calls: NonNegativeInt = 0
    """Most tool calls made in one step; 0 sets no limit."""
    step_leaves: NonNegativeInt = 0
    """Most leaves grown in one step; 0 sets no limit. The last wave starts just as many chains as are left."""
    step_seconds: NonNegative = 0.0
    """Most seconds since the rollout of a step began; 0 sets no limit. Trees then depend on how fast the machine is."""
    run_tokens: NonNegativeInt = 0
    """Tokens generated in the whole run, those of prompts that were thrown away included, after which training ends; 0
    sets no limit. The step that reaches it is the last. Learning-rate schedules still span `train.num_steps`, which is
    the most that are trained."""
    run_tool_calls: NonNegativeInt = 0
    """Tool calls of the whole run after which training ends; 0 sets no limit."""
    run_seconds: NonNegative = 0.0
    """Seconds of the whole run after which training ends; 0 sets no limit. Only steps count, evaluations and
    checkpoints do not."""

    @property
    def limits_steps(self) -> bool:
        """Whether the prompts of a step share a budget."""
        return any((self.step_tokens, self.step_tool_calls, self.step_leaves, self.step_seconds))

    @property
    def limits_prompts(self) -> bool:
        """Whether the trees of a prompt share a budget."""
        return any((self.prompt_tokens, self.prompt_tool_calls, self.prompt_leaves, self.prompt_seconds))
