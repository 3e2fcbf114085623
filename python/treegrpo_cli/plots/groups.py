"""What a person names -> groups of runs: `RUN`, `NAME=RUN`, `NAME=RUN,RUN`; a group is one line in every panel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.plots.history import History


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Runs that are drawn as one, the seeds of an arm say, and what they are called."""

    name: str
    runs: Sequence[History]

    @property
    def has_trees(self) -> bool:
        """Whether turns are shared in any of its runs, so that they are trees and no chains."""
        return any((run.column("tree/sharing_ratio") > 0).any() for run in self.runs)


Found = tuple[str, list[Path]]
"""The name of a group, and the folders of its runs."""


def folders_of(given: Sequence[str], expand: Callable[[Path, str], list[Found] | None]) -> list[Found]:
    """Return the name and the folders of each group, names from their folders where none is given.

    `expand` says for a folder what groups it stands for, where it is no run itself. Raises UserError for a name twice.
    """
    groups: list[Found] = []
    unnamed: list[int] = []
    for text in given:
        name, equals, rest = ("", "", text) if Path(text).exists() else text.partition("=")
        if not equals:
            name, rest = "", text
        paths = [_folder(part) for part in ([text] if not equals else rest.split(",")) if part]
        if not paths:
            raise UserError(f"{text!r:.100}: expected RUN, NAME=RUN or NAME=RUN,RUN")
        if twice := [path for path, count in Counter(paths).items() if count > 1]:
            raise FileError(twice[0], f"is named twice in the line {name!r:.60}")
        expanded = expand(paths[0], name) if len(paths) == 1 else None
        if expanded is None and not name:
            unnamed.append(len(groups))
        groups += expanded if expanded is not None else [(name, paths)]
    for place, name in zip(unnamed, short_names([groups[place][1][0] for place in unnamed]), strict=True):
        groups[place] = (name, groups[place][1])
    for name, count in Counter(name for name, _ in groups).items():
        if count > 1:
            raise UserError(f"{count} lines would be called {name!r:.60}; name them, as NAME=RUN")
    return groups


def read_groups(found: Iterable[Found], warn: Callable[[str], None]) -> list[Group]:
    """Read the runs; one that has no metrics yet is left out, with a warning. Raises FileError where none has any."""
    groups, empty = list[Group](), list[Path]()
    for name, folders in found:
        read = {folder: History.read(folder) for folder in folders}
        empty += [folder for folder, history in read.items() if not len(history)]
        runs = [history for history in read.values() if len(history)]
        if runs:
            groups.append(Group(name, runs))
    if not groups:
        raise FileError(empty[0], "has no metrics yet: no metrics.jsonl, or no whole line in it")
    for folder in empty:
        warn(f"{folder}: has no metrics yet, and is left out")
    return groups


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the last part of each path, and as many before it as tell them apart.

    >>> short_names([Path("a/run"), Path("b/run"), Path("b/other")])
    ['a/run', 'b/run', 'b/other']
    """
    parts = [folder.absolute().parts for folder in folders]
    for size in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-size:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(folder) for folder in folders]


def _folder(text: str) -> Path:
    path = Path(text)
    return path.parent if path.name == "metrics.jsonl" and path.is_file() else path
