"""Tree-GRPO for LLM agents: rollouts that branch at turns, and step-level credit from outcome rewards.

    from treegrpo_cli import read_trees, score, training_rows

    rows = training_rows(score(read_trees("trees.jsonl"), "tree-grpo"))

Names are loaded when they are first used, so that importing the package costs nothing.
"""

TYPE_CHECKING = False  # as in `typing`, which takes longer to import than a command may take to see to signals
if TYPE_CHECKING:
    from treegrpo_cli.errors import UserError
    from treegrpo_cli.trees.scoring import TrainingRow, score, training_rows
    from treegrpo_cli.trees.tree_file import read_trees
    from treegrpo_cli.trees.tree_record import TreeRecord

    __version__: str

__all__ = ["TrainingRow", "TreeRecord", "UserError", "__version__", "read_trees", "score", "training_rows"]

_HOMES = {"UserError": "errors", "TreeRecord": "trees.tree_record", "read_trees": "trees.tree_file"} | dict.fromkeys(
    ("TrainingRow", "score", "training_rows"), "trees.scoring"
)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        return version("treegrpo")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"treegrpo_cli.{_HOMES[name]}"), name)
