"""Tree-GRPO for LLM agents: rollouts that branch at turns, and step-level credit from outcome rewards.

    from treegrpo_cli import read_trees, score, training_rows

    rows = training_rows(score(read_trees("trees.jsonl"), "tree-grpo"))

read_trees(path)               tree file -> trees
from_chains(rollouts)          plain rows of tokens -> trees
score(trees, estimator, ...)   trees -> scored trees
estimators()                   what there is to score by: names, options, formulas
training_rows(trees)           scored trees -> one row a leaf
preference_pairs(trees)        trees -> pairs of siblings for TRL's DPO trainer
collate(rows, pad_id)          rows -> padded tensors, where torch is installed
TreeRecord, TrainingRow        a tree, a row
Trees                          a list of trees; it and a tree have to_pandas() and to_arrow()
UserError                      what all of them raise for a caller's or a file's mistake
__version__                    the installed version

Names are loaded when they are first used, so that importing the package costs nothing.
"""

TYPE_CHECKING = False  # as in `typing`, which takes longer to import than a command may take to see to signals
if TYPE_CHECKING:
    from treegrpo_cli.errors import UserError
    from treegrpo_cli.trees.chains import from_chains
    from treegrpo_cli.trees.collection import Trees
    from treegrpo_cli.trees.estimators import estimators
    from treegrpo_cli.trees.pairs import preference_pairs
    from treegrpo_cli.trees.rows import TrainingRow, collate, training_rows
    from treegrpo_cli.trees.scoring import score
    from treegrpo_cli.trees.tree_file import read_trees
    from treegrpo_cli.trees.tree_record import TreeRecord

    __version__: str

__all__ = [
    "TrainingRow",
    "TreeRecord",
    "Trees",
    "UserError",
    "__version__",
    "collate",
    "estimators",
    "from_chains",
    "preference_pairs",
    "read_trees",
    "score",
    "training_rows",
]

_HOMES = {
    "TrainingRow": "trees.rows",
    "TreeRecord": "trees.tree_record",
    "Trees": "trees.collection",
    "UserError": "errors",
    "collate": "trees.rows",
    "estimators": "trees.estimators",
    "from_chains": "trees.chains",
    "preference_pairs": "trees.pairs",
    "read_trees": "trees.tree_file",
    "score": "trees.scoring",
    "training_rows": "trees.rows",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        return version("treegrpo")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"treegrpo_cli.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *globals()})
