"""Tree records -> what rollouts cost and what they yielded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from treegrpo_cli.trees.tree_record import TreeRecord


@dataclass(slots=True)
class RolloutStats:
    """Counts over trees; tokens are generated ones, each node counted once, `chain_tokens` once a leaf below it."""

    num_trees: int = 0
    num_leaves: int = 0
    num_distinct_leaves: int = 0
    """Leaves that differ in their path's token ids from every other leaf of their prompt."""
    num_turns: int = 0
    num_tool_calls: int = 0
    num_failed_tool_calls: int = 0
    num_errors: int = 0
    generated_tokens: int = 0
    chain_tokens: int = 0
    """What chains would have generated for as many leaves."""
    num_rewards: int = 0
    reward_sum: float = 0.0

    def add_group(self, records: Iterable[TreeRecord]) -> None:
        """Count one prompt's trees."""
        paths: set[int] = set()
        for record in records:
            self._add_tree(record, paths)
        self.num_distinct_leaves += len(paths)

    def _add_tree(self, record: TreeRecord, paths: set[int]) -> None:
        self.num_trees += 1
        inner = {node["parent"] for node in record.nodes}
        path_hash: list[int] = []
        path_tokens: list[int] = []
        for node in record.nodes:
            above = node["parent"]
            generated = sum(end - start for start, end in node.get("sampled", ()))
            path_hash.append(hash((0 if above is None else path_hash[above], tuple(node.get("token_ids", ())))))
            path_tokens.append(generated + (0 if above is None else path_tokens[above]))
            self.num_turns += above is not None
            self.num_tool_calls += node.get("num_tool_calls", 0)
            self.num_failed_tool_calls += node.get("num_failed_tool_calls", 0)
            self.generated_tokens += generated
            if node["id"] not in inner:
                self.num_leaves += 1
                self.chain_tokens += path_tokens[-1]
                self.num_errors += node.get("status") == "error"
                paths.add(path_hash[-1])
            if node.get("reward") is not None:
                self.num_rewards += 1
                self.reward_sum += node["reward"]

    @property
    def mean_reward(self) -> float | None:
        """Of all scored leaves; None without any."""
        return self.reward_sum / self.num_rewards if self.num_rewards else None

    @property
    def sharing_ratio(self) -> float:
        """1 − generated tokens / what chains would have generated; 0 without tokens."""
        return 1 - self.generated_tokens / self.chain_tokens if self.chain_tokens else 0.0
