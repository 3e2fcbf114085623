"""Imports point down: a room uses rooms below it and never one above or beside it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "python" / "treegrpo_cli"

BELOW: dict[str, set[str]] = {
    "errors": set(),
    "signals": set(),
    "types": set(),
    "tags": set(),
    "terms": {"errors"},
    "free_time": set(),
    "user_code": {"free_time", "errors"},
    "data": {"types", "errors"},
    "config": {"data", "terms", "types", "errors"},
    "models": {"errors"},
    "starters": {"envs", "config", "tags", "types", "errors"},  # what `treegrpo init` writes, an environment too
    "trees": {"data", "terms", "user_code", "types", "errors"},
    "samplers": {"models", "config", "free_time", "types", "errors"},
    "envs": {"config", "data", "user_code", "tags", "types", "errors"},
    "rewards": {"config", "user_code", "tags", "types", "errors"},
    "workers": {"rewards", "envs", "config", "free_time", "user_code", "types", "errors"},
    "rollout": {"workers", "rewards", "envs", "samplers", "trees", "config", "data"}
    | {"user_code", "tags", "types", "errors"},
    "train": {"models", "config", "types", "errors"},
    "run": {"workers", "train", "rollout", "rewards", "envs", "samplers", "models", "trees", "config", "data"}
    | {"signals", "free_time", "types", "errors"},
    "scale": {"run", "train", "samplers", "models", "config", "types", "signals", "errors"},
    "doctor": {"run", "train", "samplers", "models", "config", "data", "types", "errors"},
    "plots": {"run", "trees", "config", "data", "errors"},
    "compare": {"plots", "run", "train", "rollout", "samplers", "models", "config", "data", "signals", "errors"},
    "page": {"trees", "errors"},
    "cli": {
        "scale",
        "starters",
        "page",
        "compare",
        "plots",
        "doctor",
        "run",
        "models",
        "trees",
        "config",
        "data",
        "terms",
    }
    | {"signals", "errors"},
    "__main__": {"cli", "signals"},
}
"""Room -> the rooms that it uses, itself aside, and no others. A top-level module is a room of its own."""


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = [name.split(".") for name in names]
    return {name[1] for name in parts if name[0] == "treegrpo_cli" and name[1] not in ("_core", "__version__")}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("room", BELOW)
def test_a_room_uses_just_the_rooms_that_are_named_here(room: str) -> None:
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) == room]
    used = {path.name: imported_rooms(path) - {room} for path in files}
    assert {name: rooms - BELOW[room] for name, rooms in used.items() if rooms - BELOW[room]} == {}
    assert set().union(*used.values()) == BELOW[room]


def test_the_rooms_have_an_order() -> None:
    left = dict(BELOW)
    while left:
        lowest = [room for room, below in left.items() if not below & left.keys()]
        assert lowest, f"a circle among {sorted(left)}"
        for room in lowest:
            del left[room]


def test_every_room_is_known() -> None:
    rooms = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__pycache__", "__init__"} == BELOW.keys()


def test_public_names_come_from_trees_alone() -> None:
    assert imported_rooms(PACKAGE / "__init__.py") == {"trees", "errors"}


def test_the_loss_sees_no_forest_and_the_rollout_no_tensor() -> None:
    def names(path: Path) -> set[str]:
        return {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}

    assert "Forest" not in names(PACKAGE / "train" / "loss.py")
    assert not any("torch" in names(path) for path in (PACKAGE / "rollout").rglob("*.py"))
