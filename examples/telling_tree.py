"""Tree file -> its most telling tree, drawn: the one with most turns among those whose leaves disagree most.

python examples/telling_tree.py runs/geography-tree/trees/step-00050.jsonl.zst
"""

import sys

from treegrpo_cli import TreeRecord, read_trees
from treegrpo_cli.cli.inspect import inspect


def telling(tree: TreeRecord) -> tuple[float, int]:
    """How far the rewards of a tree's leaves lie apart, then how many turns it has."""
    rewards = [node["reward"] for node in tree.nodes if node["reward"] is not None]
    return max(rewards, default=0.0) - min(rewards, default=0.0), len(tree.nodes)


if __name__ == "__main__":
    path = sys.argv[1]
    chosen = max(read_trees(path), key=telling)
    inspect([path], prompt_id=chosen.prompt_id, tree_id=chosen.tree_id)
