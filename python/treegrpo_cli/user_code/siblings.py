"""Folder of a user's file -> its other modules can be imported by their names, as `python file.py` would have it.

They come behind everything that is installed and shadow nothing. Modules of one name in two folders are two: each
file gets its own, and it is said, because an import inside a function finds only the one that came first.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)


class _Finder(MetaPathFinder):
    """Finds top-level modules in the folder of the file that is being loaded, later in any such folder."""

    def __init__(self) -> None:
        self.folders: list[Path] = []
        self.loading: list[Path] = []
        self.found: dict[str, Path] = {}

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is not None:  # a module inside a package finds itself
            return None
        for folder in self.loading[-1:] or self.folders:
            spec = PathFinder.find_spec(name, [str(folder)])
            if spec is not None:
                self.found.setdefault(name, folder)
                return spec
        return None


_finder = _Finder()
_second: dict[Path, dict[str, ModuleType]] = {}
"""Folder -> its modules that could not keep their names."""


@contextmanager
def siblings_of(folder: Path) -> Iterator[None]:
    """Let the body import modules of `folder`; those that it imported stay."""
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    if folder not in _finder.folders:
        _finder.folders.append(folder)
    others = {name for name, owner in _finder.found.items() if owner != folder}
    aside = _take(others)
    sys.modules.update(_second.get(folder, {}))
    _finder.loading.append(folder)
    try:
        yield
    finally:
        _finder.loading.pop()
        own = _take(others)
        for name in sorted(own.keys() & others - _second.get(folder, {}).keys()):
            logger.warning(
                "%s and %s both have a module %r: each of your files got its own, but an import inside a function "
                "would find the first; give one another name",
                _finder.found[name],
                folder,
                name,
            )
        _second.setdefault(folder, {}).update(own)
        sys.modules.update(aside)


def _take(names: set[str]) -> dict[str, ModuleType]:
    """Remove these modules, and those inside them, from what is imported, and return them."""
    taken = [module for module in sys.modules if module.partition(".")[0] in names]
    return {module: sys.modules.pop(module) for module in taken}
