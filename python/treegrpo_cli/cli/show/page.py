"""Chosen trees -> one HTML file: what `treegrpo inspect-tree --html` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from treegrpo_cli.cli.chosen import Chosen
from treegrpo_cli.data.outputs import check_output
from treegrpo_cli.data.whole_file import write_whole
from treegrpo_cli.errors import FileError, UserError
from treegrpo_cli.page.document import document
from treegrpo_cli.page.groups import Group, prepared
from treegrpo_cli.page.vocabulary import Vocabularies


def check_page(path: Path | None, tokenizer: Path | None, others: Mapping[str, bool]) -> None:
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
    check_output(path)


def write_page(
    chosen: Chosen,
    path: Path,
    sources: Sequence[str | Path],
    *,
    tokenizer: Path | None = None,
    limit: int | None = None,
) -> None:
    """Write a page of scored trees, the first `limit` of those that are wanted; whole or not at all.

    Raises UserError where trees or the tokenizer cannot be read, or the file cannot be written.
    """
    vocabularies = Vocabularies(tokenizer)
    content = document(list(_prepared(chosen, limit)), vocabularies, _title(sources))
    try:
        write_whole(path, content)
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror}") from None


def _prepared(chosen: Chosen, limit: int | None) -> Iterator[Group]:
    left = limit
    for group, ids in chosen:
        wanted = [record.tree_id for record in group if record.tree_id in ids][:left]
        yield prepared(group, set(wanted))
        left = None if left is None else left - len(wanted)
        if left == 0:
            return


def _title(sources: Sequence[str | Path]) -> str:
    names = ["standard input" if str(source) == "-" else Path(source).name or str(source) for source in sources]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
