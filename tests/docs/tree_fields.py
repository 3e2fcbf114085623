"""The fields of a tree file that docs/reference/tree-file.md names, with their types."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "tree-file.md"
NODE = ("A node", "What scoring adds")


def named(*sections: str) -> dict[str, str]:
    """Return field -> type of the tables in these sections of the page."""
    text = PAGE.read_text(encoding="utf-8")
    tables = [re.split(r"^## ", text.partition(f"\n## {section}\n")[2], flags=re.MULTILINE)[0] for section in sections]
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", "\n".join(tables), flags=re.MULTILINE))


def unnamed_fields(trees: Iterable[dict[str, Any]]) -> set[str]:
    """Return the fields in these trees, their nodes and their meta that the page does not name."""
    unnamed: set[str] = set()
    for tree in trees:
        unnamed |= tree.keys() - named("A tree").keys()
        unnamed |= (tree.get("meta") or {}).keys() - named("Meta").keys()
        unnamed |= set().union(*tree["nodes"]) - named(*NODE).keys()
    return unnamed
