"""Imports point down: a room uses the rooms below it and never one above or beside it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "python" / "treegrpo_cli"

BELOW: dict[str, set[str]] = {
    "errors": set(),
    "signals": set(),
    "types": {"errors"},
    "tags": {"errors", "types"},
    "free_time": set(),
    "user_code": {"free_time", "errors", "types"},
    "data": {"errors", "types"},
    "config": {"data", "errors", "types"},
    "models": {"config", "data", "errors", "types"},
    "trees": {"config", "data", "errors", "types"},
    "samplers": {"free_time", "models", "config", "errors", "types"},
    "envs": {"free_time", "data", "tags", "user_code", "config", "errors", "types"},
    "rewards": {"free_time", "tags", "user_code", "config", "errors", "types"},
}
"""Room -> the rooms that it may use, itself aside. A top-level module is a room of its own."""
BELOW["rollout"] = {*BELOW, "trees"}
BELOW["train"] = {"trees", "models", "config", "data", "errors", "types"}
BELOW["run"] = {*BELOW, "rollout", "train"}
BELOW["cli"] = {*BELOW, "run"}
BELOW["__main__"] = {"cli", "signals"}


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


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_from_the_rooms_below_its_own(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the public names, looked up when they are used
    assert imported_rooms(path) - {room} - BELOW[room] == set()


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


def test_the_loss_sees_no_forest_and_the_rollout_no_tensor() -> None:
    def names(path: Path) -> set[str]:
        return {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}

    assert "Forest" not in names(PACKAGE / "train" / "loss.py")
    assert not any("torch" in names(path) for path in (PACKAGE / "rollout").rglob("*.py"))
