"""Command line -> one function call, and its errors -> one line and an exit code: 2 for a user's mistake.

Commands import what they need when they run, so that `--help` stays quick.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from treegrpo_cli import signals
from treegrpo_cli.cli.commands.compare import compare
from treegrpo_cli.cli.commands.config import config
from treegrpo_cli.cli.commands.doctor import doctor
from treegrpo_cli.cli.commands.estimators import list_estimators
from treegrpo_cli.cli.commands.evaluate import evaluate
from treegrpo_cli.cli.commands.init import init
from treegrpo_cli.cli.commands.inspect_tree import inspect_tree
from treegrpo_cli.cli.commands.plot import plot
from treegrpo_cli.cli.commands.rollout import rollout
from treegrpo_cli.cli.commands.rules import list_rules
from treegrpo_cli.cli.commands.train import train
from treegrpo_cli.cli.commands.watch import watch
from treegrpo_cli.errors import FailedRunError, Problems, Stopped, UserError, bounded, debugging, last_lines

EXIT_CODES = """\
Exit codes:

\b
  0    done
  1    too much of a run failed (train.max_failed_fraction),
       runs of a comparison failed,
       the doctor found something wrong,
       Ray ended under a run,
       or the reader of the output is gone
  2    a mistake in arguments, settings, data or files: a line says which
  130  stopped by Ctrl-C, 143 by SIGTERM; --resume continues from there
"""

app = typer.Typer(
    name="treegrpo",
    epilog=EXIT_CODES,
    help="Tree-GRPO for LLM agents: rollouts that branch at turns, step-level credit from outcome rewards.",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help in plain text: rich would take three times as long to load
)


MAX_COLUMNS = 999


def main() -> None:
    """Run the command line and exit: 0, 2 for a user's mistake, 128 + its number for a signal; our own bugs fly."""
    warnings.showwarning = _show_warning
    _mend_terminal()
    try:
        code = _run()
    except Stopped as stopped:
        _leave(stopped.hint or "stopped", stopped.signal_number)
    except (KeyboardInterrupt, typer.Abort) as stop:
        if isinstance(stop.__cause__, EOFError):  # typer takes that for a closed prompt, and we ask nothing
            raise stop.__cause__ from None
        _leave("stopped", signal.SIGINT)
    except BaseException:  # what a stop left half done
        if not signals.first_signal():
            raise
        _leave("stopped", signals.first_signal())
    sys.exit(code)


def _run() -> int:
    """Run the command and return its exit code, behind one line where something is wrong."""
    try:
        os.getcwd()
    except OSError as error:  # libraries ask for it while they are imported
        return _complain(f"the working directory: {error.strerror}", 2)
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="treegrpo", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:  # without a message it has shown the help
        message = error.format_message().replace(": Value error, ", ": ")
        code = _complain(bounded(message), 2) if message else 2
    except UserError as error:
        _show_trace(error)
        lines = error.lines if isinstance(error, Problems) else [str(error)]
        code = max(_complain(line, 1 if isinstance(error, FailedRunError) else 2) for line in lines)
    except BrokenPipeError:  # the reader has seen enough; typer does the same for what is written earlier
        code = 1
        _drop_output()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        code = _complain(f"{error.filename or 'standard output'}: {error.strerror}", 2)
        _drop_output()
    return code if isinstance(code, int) else 0


def _leave(message: str, signal_number: int) -> NoReturn:
    """Say a last line and end: nothing of a stopped program, its libraries' threads say, may speak or wait."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    signals.leave(signal_number, _one_line(message))


def _mend_terminal() -> None:
    """Give a program streams for those that were closed, and a width that can be drawn on.

    What the encoding of standard output lacks is written as an escape, as on standard error.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open as long as the program
    if sys.stdout.errors == "strict" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    columns = os.environ.get("COLUMNS", "")
    if len(columns) > 3:
        os.environ["COLUMNS"] = str(MAX_COLUMNS)
    elif columns.isdecimal() and int(columns) == 0:
        del os.environ["COLUMNS"]


def _drop_output() -> None:
    """Send what standard output still holds nowhere, so that the interpreter's last flush cannot fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_trace(error: UserError) -> None:
    """Show where the user's own code raised, its last lines; while debugging all there is, of any mistake."""
    if debugging():
        traceback.print_exception(error)
    elif error.trace:
        print("\n".join(last_lines(error.trace)), file=sys.stderr)


def _complain(message: str, code: int) -> int:
    print(f"treegrpo: {_one_line(message)}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"treegrpo: warning: {_one_line(bounded(str(message)))}", file=sys.stderr)


def _one_line(message: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in " ".join(message.splitlines()))


def _version(asked: bool) -> None:
    if asked:
        from treegrpo_cli import __version__

        print(f"treegrpo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="TREEGRPO_DEBUG", help="Show whole tracebacks.")] = False,
) -> None:
    if debug:
        os.environ["TREEGRPO_DEBUG"] = "1"


app.command(short_help="Write a settings file for a task, with all that it needs.")(init)
app.command(short_help="Check this machine and the settings of a run; run this first.")(doctor)
app.command(short_help="Grow trees, score them and write them.")(rollout)
app.command(short_help="Train a policy on the trees it grows.")(train)
app.command(short_help="Train several arms at equal budgets, and compare them.")(compare)
app.command("eval", short_help="Measure a model or a run on questions.")(evaluate)
app.command(short_help="Follow a run in the terminal.")(watch)
app.command(short_help="Draw runs, into files or in the terminal.")(plot)
app.command("inspect-tree", short_help="Show trees with their advantages: drawn, as JSON, or as a page.")(inspect_tree)
app.command("config", short_help="List every setting, or explain one.")(config)
app.command("estimators", short_help="List the estimators: how rewards become advantages.")(list_estimators)
app.command("rules", short_help="List the selection rules: which turns are expanded.")(list_rules)
