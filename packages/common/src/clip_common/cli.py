"""What every command line here shares: an application, errors of one line, overrides, progress.

app = application("clipse", help="CLIP training for image-text retrieval.")

@app.command("train")
def train_command(overrides: Overrides = None, config: ConfigName = None) -> None:
    from clipse.training.experiment import train  # heavy imports wait for the verb, so that --help is quick
    ...

def main() -> None:  # the console script
    cli.main(app)
"""

import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.FIELD=VALUE", help="Configuration overrides.", show_default=False),
]
"""The plain list of `section.field=value`; an unknown option stays an error."""

ConfigName = Annotated[
    str | None,
    typer.Option("--config", metavar="NAME-or-FILE", help="A named configuration, or a YAML file.", show_default=False),
]

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_DRAWINGS = 0.1


def application(name: str, *, help: str) -> typer.Typer:
    """A typer application, or a group of verbs in one, with `--debug` and `--help`; called bare it prints its help."""
    app = typer.Typer(name=name, help=help, add_completion=False, rich_markup_mode="markdown")

    @app.callback(invoke_without_command=True)
    def options(
        context: typer.Context,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    ) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return app


def main(app: typer.Typer, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `app` and exit.

    0 when all went well. 2 after one line on stderr for what the user can mend: a wrong option, a ValueError, a
    missing file, a full disk, a missing package. 130 on Ctrl-C. 1 for anything else, which is a defect. `--debug`,
    anywhere on the line, shows the traceback.

    Args:
        app: What `application` made.
        arguments: The command line; default: the process's own.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not debug:
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.showwarning = _show_warning
    try:
        command = typer.main.get_command(app)
        code = command.main(args=arguments, prog_name=app.info.name, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        line, code = _explain(error)
        _stderr(f"error: {line}", style="red")
        sys.exit(code)


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A `progress(done, total)` to hand to long work: a bar on a terminal, a line now and then in a pipe; on stderr.

    Example:
        with progress("decoding images") as report:
            check(root, progress=report)
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    # drawn by hand, without a thread: worker processes are forked beside it
    bar = Progress(*columns, console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    task = bar.add_task(description, total=None) if bar else None
    shown = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if bar is not None and task is not None and (now - shown > SECONDS_BETWEEN_DRAWINGS or done >= total):
            bar.update(task, completed=done, total=total, refresh=True)
        elif bar is None and now - shown > SECONDS_BETWEEN_LINES:
            console.print(f"{description}  {done}/{total}", markup=False)
        else:
            return
        shown = now

    if bar is None:
        yield report
    else:
        with bar:
            yield report


def _explain(error: Exception) -> tuple[str, int]:
    """The line for an error, and the exit code."""
    if hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        return f"{_one_line(error.format_message()).rstrip('.')}{hint}", 2
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, 2
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "out of GPU memory: set trainer.precision=bf16-mixed, or lower data.batch_size (which leaves a contrastive "
            "loss fewer negatives; trainer.accumulate does not bring them back)"
        ), 2
    if isinstance(error, (ValueError, OSError, ImportError)):
        return _one_line(str(error)) or type(error).__name__, 2
    return f"{type(error).__name__}: {_one_line(str(error))} (a defect; --debug shows where)", 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _stderr(f"warning: {_one_line(str(message))}", style="yellow")


def _stderr(line: str, *, style: str) -> None:
    Console(stderr=True, highlight=False).print(line, style=style, markup=False, soft_wrap=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())
