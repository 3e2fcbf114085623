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
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from treegrpo_cli import signals
from treegrpo_cli.errors import FailedRunError, Problems, Stopped, UserError, bounded, debugging, last_lines

if TYPE_CHECKING:
    from treegrpo_cli.config import Config

EXIT_CODES = """\
Exit codes:

\b
  0    done
  1    too much of a run failed (train.max_failed_fraction),
       or nobody reads the output any more
  2    a mistake in arguments, settings, data or files: a line says which
  130  stopped by Ctrl-C, 143 by SIGTERM; --resume goes on from there
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


class Report(StrEnum):
    """How `eval` says what it measured."""

    TEXT = "text"
    JSON = "json"


class Format(StrEnum):
    """How `inspect-tree` shows trees."""

    TREE = "tree"
    JSON = "json"


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
        code = app(sys.argv[1:] or ["--help"], prog_name="treegrpo", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:  # without a message it has shown the help
        code = _complain(bounded(error.format_message()), 2) if error.format_message() else 2
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
    """Give a program that was started with closed streams some, and one that says it is a kilometre wide less."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open as long as the program
    if len(os.environ.get("COLUMNS", "")) > 3:
        os.environ["COLUMNS"] = str(MAX_COLUMNS)


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


def _complete_setting(incomplete: str) -> list[str]:
    from treegrpo_cli.cli.completion import complete_setting

    return complete_setting(incomplete)


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
    debug: Annotated[
        bool, typer.Option("--debug", envvar="TREEGRPO_DEBUG", help="Show tracebacks, those of your own code whole.")
    ] = False,
) -> None:
    if debug:
        os.environ["TREEGRPO_DEBUG"] = "1"


@app.command("inspect-tree", short_help="Draw trees with their advantages, or dump them.")
def inspect_tree(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help="Tree files, .jsonl or .jsonl.zst, or a run's directory; - is standard input."
        ),
    ],
    step: Annotated[int | None, typer.Option(help="Show the trees of this step of a run only.")] = None,
    output_format: Annotated[
        Format | None,
        typer.Option("--format", help="Drawn, or scored lines.  [default: tree]", show_default=False),
    ] = None,
    nested: Annotated[bool, typer.Option("--nested", help="JSON with children inside their parents.")] = False,
    summary: Annotated[bool, typer.Option("--summary", help="Counts and the signal at each depth.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Draw whole turns and observations.")] = False,
    explain: Annotated[
        int | None,
        typer.Option(
            metavar="NODE", help="Split the advantage of a node, by the id that --full shows, into its terms."
        ),
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(
            help="Score anew; see treegrpo estimators.  [default: the file's scoring, else tree-grpo]",
            show_default=False,
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="An option of the estimator: name=value. May be given again.")
    ] = None,
    prompt_id: Annotated[str | None, typer.Option(help="Show the trees of this prompt only.")] = None,
    tree_id: Annotated[int | None, typer.Option(help="Show trees of this number only.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Show this many trees, then stop.")] = None,
) -> None:
    """Draw trees with rewards, values and advantages, or dump them, scored, as JSON."""
    from treegrpo_cli.cli.inspect import inspect

    inspect(
        files,
        step=step,
        estimator=estimator,
        options=_pairs(option or []),
        prompt_id=prompt_id,
        tree_id=tree_id,
        limit=limit,
        output_format=(output_format or (Format.JSON if nested else Format.TREE)).value,
        nested=nested,
        summary=summary,
        full=full,
        node=explain,
    )


@app.command("estimators", short_help="List how rewards become advantages.")
def list_estimators(
    name: Annotated[str | None, typer.Argument(help="Tell all of this one.", show_default=False)] = None,
) -> None:
    """List the estimators, their formulas and options: what --estimator and [advantage] take."""
    from treegrpo_cli.trees.estimators import lines_of

    for line in lines_of(name):
        print(line)


Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG KEY=VALUE",
        help="A TOML or YAML file, then settings that win over it.",
        show_default=False,
        autocompletion=_complete_setting,
    ),
]
Model = Annotated[str | None, typer.Option(help="The same as model.path=...", show_default=False)]
Data = Annotated[str | None, typer.Option(help="The same as data.train=...", show_default=False)]
Reward = Annotated[
    list[str] | None,
    typer.Option(help="exact_match, f1, format, or package.module:function; may be given again."),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check all that can be checked without an engine, print the resolved settings, and stop."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print results only.")]


@app.command(short_help="Grow trees, score them and write them.")
def rollout(
    settings: Settings = None,
    output: Annotated[Path, typer.Option(help="Tree file to write, .jsonl or .jsonl.zst.")] = Path("trees.jsonl"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a file that was not finished.")] = False,
    greedy: Annotated[
        bool,
        typer.Option("--greedy", help="Write no trees: one greedy chain a question of --data, else of data.eval."),
    ] = False,
    model: Model = None,
    data: Data = None,
    reward: Reward = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Grow trees for every question of a data set, score them, and write them."""
    from treegrpo_cli.cli.commands import check_rollout, names_train_data, read_settings, run_greedy, run_rollout

    if greedy and resume:
        raise UserError("--greedy writes no trees: there is nothing to --resume")
    config = read_settings(settings or [], model=model, data=data, reward=reward)
    asks_train_data = data is not None or names_train_data(settings or [])
    if dry_run:
        check_rollout(config, None if greedy else output, resume=resume, asks_train_data=asks_train_data)
        _print_settings(config)
    elif greedy:
        run_greedy(config, asks_train_data=asks_train_data, quiet=quiet)
    else:
        run_rollout(config, output, resume=resume, quiet=quiet)


@app.command("eval", short_help="Measure a model or a run on questions.")
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN",
            help="A model, or the folder of a run: its settings and newest checkpoint.",
            show_default=False,
        ),
    ],
    settings: Settings = None,
    data: Annotated[str | None, typer.Option(help="The same as data.eval=...", show_default=False)] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples a question.")] = 1,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Take the likeliest token.  [default where --n is 1]")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(help="Sample; the same as rollout.temperature=...", show_default=False)
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="The checkpoint of this step of a RUN; 0: before training.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="pass@k: the reward from which on a sample passes.")] = 1.0,
    output: Annotated[
        Path | None, typer.Option(help="Write the rollouts, a tree file for inspect-tree.", show_default=False)
    ] = None,
    output_format: Annotated[Report, typer.Option("--format", help="Lines, or one JSON object.")] = Report.TEXT,
    reward: Reward = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Ask questions, greedily or n times each: mean rewards with intervals, pass@k, and what the majority answers."""
    from treegrpo_cli.cli.evaluate import Sampling, check_evaluation, read_target, run_evaluation

    config = read_target(target, settings or [], step=step, data=data, reward=reward, temperature=temperature)
    if greedy and (n > 1 or temperature is not None):
        raise UserError("--greedy takes one sample a question, and no --temperature")
    if dry_run:
        check_evaluation(config, output)
        _print_settings(config)
    else:
        sampling = Sampling(n, greedy=n == 1 and temperature is None)
        run_evaluation(config, sampling, threshold, output, as_json=output_format is Report.JSON, quiet=quiet)


@app.command(short_help="Train a policy on the trees it grows.")
def train(
    settings: Settings = None,
    output_dir: Annotated[str | None, typer.Option(help="The same as output_dir=...", show_default=False)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the output directory, or in a folder given as RUN.")
    ] = False,
    report_to: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard, wandb, trackio or none, beside metrics.jsonl; may be given again."),
    ] = None,
    log_completions: Annotated[
        bool,
        typer.Option("--log-completions", help="Show a few completions a step; train.log_completions says how many."),
    ] = False,
    model: Model = None,
    data: Data = None,
    reward: Reward = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Train: rollouts, rewards, advantages, policy update, new weights to the engine, again."""
    from treegrpo_cli.cli.commands import Flags, check_train, read_resumed_settings, read_settings, run_train

    flags = Flags(
        model=model,
        data=data,
        reward=reward,
        output_dir=output_dir,
        report_to=report_to,
        log_completions=log_completions,
    )
    config, named = (
        read_resumed_settings(settings or [], **flags) if resume else (read_settings(settings or [], **flags), set())
    )
    if dry_run:
        check_train(config, resume=resume)
        _print_settings(config)
    else:
        run_train(config, resume=resume, named=named, quiet=quiet)


def _print_settings(config: Config) -> None:
    from treegrpo_cli.config.files import dump_config
    from treegrpo_cli.config.secrets import without_passwords

    print(without_passwords(dump_config(config)), end="")


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    for name, equals, _ in pairs:
        if not name or not equals:
            raise UserError(f"--option {name!r}: expected name=value")
    return {name: value for name, _, value in pairs}
