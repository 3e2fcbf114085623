"""Chosen trees -> one HTML file, or a folder of them: what `treegrpo inspect-tree --html` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from treegrpo_cli import signals
from treegrpo_cli.cli.chosen import Chosen
from treegrpo_cli.data.outputs import check_output
from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.page.document import document
from treegrpo_cli.page.folder import PageFolder, check_folder
from treegrpo_cli.page.groups import prepared
from treegrpo_cli.page.listing import Listing, links
from treegrpo_cli.page.paging import Part, check_size, pages, parts_of, rows_of
from treegrpo_cli.page.vocabulary import Vocabularies


def check_page(
    path: Path | None, tokenizer: Path | None, others: Mapping[str, bool], sources: Sequence[str | Path] = ()
) -> None:
    """Raise UserError where no page can be written under this name, or another of `others` is asked for as well."""
    if path is None:
        if tokenizer is not None:
            raise UserError("--tokenizer goes with --html; for pairs it is --option tokenizer=DIR")
        return
    for name, is_asked in others.items():
        if is_asked:
            raise UserError(f"--html cannot be combined with {name}: the page has it all")
    if str(path) == "-":
        raise UserError("--html -: give the name of a file; a page is looked at in a browser")
    if is_folder(path):
        check_folder(path)
        check_output(path / "index.html" if path.is_dir() else path)
    else:
        check_output(path)
    if path.is_file() and any(Path(source).exists() and path.samefile(source) for source in sources):
        raise FileError(path, "is the file that is read; give the page another name")


def write_page(
    chosen: Chosen,
    path: Path,
    sources: Sequence[str | Path],
    *,
    tokenizer: Path | None = None,
    limit: int | None = None,
    together: bool = False,
) -> None:
    """Write scored trees, the first `limit` of those that are wanted, as a page or a folder; whole or not at all.

    In a folder, `together` brings what several files hold of one dataset row to the same page. Raises UserError where
    trees or the tokenizer cannot be read, where they are too many for a page, or where nothing can be written.
    """
    vocabularies = Vocabularies(tokenizer)
    parts = parts_of(chosen, limit)
    if is_folder(path):
        _write_folder(parts, path, _title(sources), vocabularies, together=together)
        return
    groups = [prepared(part.records, part.ids) for part in check_size(parts, path)]
    try:
        write_whole(path, document(groups, vocabularies, _title(sources)))
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror}") from None


def is_folder(path: Path) -> bool:
    """Whether a folder of pages is asked for: under any name but one that ends as a page does."""
    return path.suffix.lower() not in (".html", ".htm")


def _write_folder(parts: Iterator[Part], path: Path, title: str, vocabularies: Vocabularies, *, together: bool) -> None:
    listing = Listing()
    with PageFolder(path) as folder:

        def stop(number: int) -> None:
            folder.discard()
            signals.leave(number, "stopped")

        with signals.react(stop):
            rows = rows_of(parts, folder.partial if together else None)
            for page, is_last in pages(rows):
                groups = [prepared(part.records, part.ids) for part in page]
                listing.add(groups, folder.num_pages)
                folder.add(document(groups, vocabularies, title, links(folder.num_pages, is_last)))
                vocabularies.forget()
            folder.add_index(listing.document(title))


def _title(sources: Sequence[str | Path]) -> str:
    names = ["standard input" if str(source) == "-" else Path(source).name or str(source) for source in sources]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
