"""RUN… + options -> pictures of runs, or the same in the terminal: what `treegrpo plot` does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from treegrpo_cli.data.outputs import check_output as check_file
from treegrpo_cli.errors import FileError, UserError, nearest, said
from treegrpo_cli.run.progress import Reporter

PLAIN_WIDTH = 80


@dataclass(frozen=True, slots=True)
class Asked:
    """The arguments as they were typed; `output` "" where none was."""

    runs: Sequence[str]
    output: str
    axis: str
    metrics: Sequence[str]
    only: Sequence[str]
    smooth: int
    show: bool


def run_plot(asked: Asked, *, quiet: bool) -> None:
    """Draw into files, or where `show` asks for it in the terminal, and into files if `output` names them."""
    check_packages(draws=bool(asked.output) or not asked.show, shows=asked.show)
    from treegrpo_cli.plots.groups import folders_of, read_groups
    from treegrpo_cli.plots.panels import PANELS, View, make_panels

    output = check_output(asked.output or "plots")
    for name in asked.only:
        if name not in PANELS:
            raise UserError(f"--only {name!r:.60}: there is no such panel, {nearest(name, PANELS)}")
    reporter = Reporter(quiet=quiet)
    groups = read_groups(folders_of(asked.runs, arms_of), reporter.warn)
    drawing = make_panels(groups, View(asked.axis, asked.smooth), asked.only, asked.metrics)
    if asked.show:
        from treegrpo_cli.plots.terminal import draw_panels

        console = terminal()
        for text in draw_panels(
            drawing, console.width, ascii_only=not writes_blocks(console), has_colour=bool(console.color_system)
        ):
            console.print(text, soft_wrap=True)
    if asked.output or not asked.show:
        from treegrpo_cli.plots.figures import write_pictures

        try:
            files = write_pictures(drawing, output)
        except OSError as error:
            raise FileError(error.filename or output, said(error)) from None
        for file in files if len(files) == 1 else [output]:
            reporter.say(f"{len(files)} pictures are in {file}" if len(files) > 1 else f"the picture is {file}")


def check_packages(*, draws: bool, shows: bool) -> None:
    """Raise UserError where what draws is not installed."""
    wanted = ["scipy", *["matplotlib"] * draws, *["plotext"] * shows]
    lacking = [name for name in wanted if find_spec(name) is None]
    if lacking:
        raise UserError(f"this command needs {' and '.join(lacking)}: pip install 'treegrpo[plots]'")


def check_output(text: str) -> Path:
    """Return where pictures go: a folder, or a file that ends in .png or .svg. Raises UserError for any other."""
    path = Path(text)
    if path.suffix.lower() in (".png", ".svg"):
        check_file(path)
        return path
    try:
        is_file = path.exists() and not path.is_dir()
    except OSError as error:
        raise FileError(path, said(error)) from None
    if is_file or path.suffix.lower() in (".pdf", ".jpg", ".jpeg", ".eps", ".gif", ".html"):
        raise UserError(f"--output {text!r:.200}: expected a folder, or a file that ends in .png or .svg")
    return path


def arms_of(folder: Path, name: str) -> list[tuple[str, list[Path]]] | None:
    """Return the arms of a comparison's folder, each with the runs that have begun; None of any other folder."""
    if not (folder / "comparison.json").is_file():
        return None
    from treegrpo_cli.compare.comparison import Plan
    from treegrpo_cli.compare.runs import run_name

    plan, arms = Plan.read(folder), []
    for arm in plan.arms:
        runs = [folder / "runs" / run_name(arm, seed) for seed in plan.seeds]
        begun = [run for run in runs if (run / "metrics.jsonl").is_file()]
        if begun:
            arms.append((f"{name} {arm}" if name else arm, begun))
    if not arms:
        raise FileError(folder, "is a comparison in which no run has begun")
    return arms


def terminal() -> Console:
    """Standard output: as wide as the terminal, or as COLUMNS says; 80 columns where it is neither."""
    console = Console(emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in console._environ:
        return Console(emoji=False, highlight=False, width=PLAIN_WIDTH)
    return console


def writes_blocks(console: Console) -> bool:
    """Whether the encoding of the output has frames, blocks and braille dots."""
    try:
        "┌⠒█".encode(getattr(console.file, "encoding", None) or sys.getdefaultencoding())
    except (UnicodeEncodeError, LookupError):
        return False
    return True
