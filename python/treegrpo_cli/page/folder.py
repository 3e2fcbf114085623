"""Pages -> a folder that is there whole or not at all, and takes the place of nothing but its like.

Pages are written to a hidden folder beside it, which gets the name at the end. A process that is killed leaves that
hidden folder behind, `.NAME.….partial`, and nothing else.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from treegrpo_cli.errors import FileError, said

MARK = ".treegrpo-pages"
INDEX, PAGES = "index.html", "pages"
PAGE = re.compile(r"\d{6,}\.html")


def check_folder(path: Path) -> None:
    """Raise FileError where `path` is there and is no folder of ours, or holds what is not ours."""
    try:
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise FileError(path, "is there and is no folder; --html writes one page to a name that ends in .html")
        if not path.is_dir():
            return
        names = {entry.name for entry in path.iterdir()}
        if names and MARK not in names:
            raise FileError(path, "is a folder of something else; give the name of a new one")
        pages = {entry.name for entry in (path / PAGES).iterdir()} if PAGES in names else set[str]()
        foreign = sorted(names - {MARK, INDEX, PAGES}) + sorted(name for name in pages if not PAGE.fullmatch(name))
        if foreign:
            raise FileError(path, f"holds {foreign[0]!r}, which no page is; move it, or give the name of a new folder")
    except OSError as error:
        raise FileError(path, said(error)) from None


class PageFolder:
    """A folder of numbered pages and their index: `with` it, write, and it is there at the end.

    Raises FileError where it cannot be written, or is there and not ours.
    """

    def __init__(self, path: Path) -> None:
        check_folder(path)
        self.path = path
        self.num_pages = 0

    def __enter__(self) -> Self:
        try:
            made = tempfile.mkdtemp(prefix=f".{self.path.name}.", suffix=".partial", dir=self.path.parent)
            self.partial = Path(made)
            self.partial.chmod(0o777 & ~_umask())
            (self.partial / MARK).touch()
            (self.partial / PAGES).mkdir()
        except OSError as error:
            raise FileError(self.path, f"cannot be written: {said(error)}") from None
        return self

    def add(self, content: bytes) -> None:
        """Write the next page."""
        self._write(f"{PAGES}/{page_name(self.num_pages)}", content)
        self.num_pages += 1

    def add_index(self, content: bytes) -> None:
        """Write the page that leads to the others."""
        self._write(INDEX, content)

    def discard(self) -> None:
        """Leave nothing of what was written."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _write(self, name: str, content: bytes) -> None:
        try:
            (self.partial / name).write_bytes(content)
        except OSError as error:
            raise FileError(self.path, f"cannot be written: {said(error)}") from None

    def _finish(self) -> None:
        """Give the folder its name, in the place of an older one of ours."""
        check_folder(self.path)
        old = self.partial.with_suffix(".old")
        try:
            if self.path.is_dir():
                self.path.rename(old)
            self.partial.rename(self.path)
        except OSError as error:
            with suppress(OSError):
                old.rename(self.path)
            raise FileError(self.path, f"cannot be written: {said(error)}") from None
        shutil.rmtree(old, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self.discard()


def page_name(number: int) -> str:
    """The file of a page, from 0; a prompt's own name never becomes one of a file."""
    return f"{number + 1:06d}.html"


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
