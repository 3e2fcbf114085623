"""Two rewards of your own, in TRL's and in verl's signature; the names of their arguments tell which it is.

    treegrpo rollout my.toml 'reward.functions=["exact_match", "examples/own_reward.py:brief"]' \\
        'reward.weights=[1.0, 0.1]'
"""

from typing import Any


def brief(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    """TRL's signature: all completions at once, columns as lists; None leaves a rollout unscored."""
    return [None if not completion.strip() else 1 / (1 + len(completion) / 1000) for completion in completions]


def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any]) -> float:
    """verl's signature, a rollout at a time: 1 where an accepted answer stands anywhere in it."""
    accepted = ground_truth if isinstance(ground_truth, list) else [ground_truth]
    return float(any(str(answer).lower() in solution_str.lower() for answer in accepted))
