"""A typer application whose errors and warnings are one line each."""

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console


class Application(typer.Typer):
    """A command line, or a group of verbs in one. Calling it runs the command and exits: it is the console script.

    The exit code is 0 on success; 2, after one line on stderr, for an error that the user can correct (a wrong option,
    a ValueError, a missing file, a full disk, a missing package); 130 on Ctrl-C; 1 for anything else, which is a
    defect. `--debug` anywhere on the command line shows the traceback. Without a verb it prints its help.

    Args:
        name: The command, or the group's verb.
        help: First line of its help.
        default_verb: The verb that a command line without one means, such as `videoclip data.root=walks/`.
    """

    def __init__(self, name: str, *, help: str, default_verb: str | None = None) -> None:
        super().__init__(name=name, help=help, add_completion=False, rich_markup_mode="markdown")
        self.callback(invoke_without_command=True)(_options)
        self.default_verb = default_verb

    def __call__(self, arguments: Sequence[str] | None = None) -> NoReturn:
        """Run the command line `arguments`, by default that of the process, and exit."""
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        debug = "--debug" in arguments
        arguments = [argument for argument in arguments if argument != "--debug"]
        if self.default_verb is not None and arguments and _begins_without_verb(arguments[0]):
            arguments.insert(0, self.default_verb)
        if not debug:
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.showwarning = _show_warning
        try:
            command = typer.main.get_command(self)
            code = command.main(args=arguments, prog_name=self.info.name, standalone_mode=False)
            sys.exit(code if isinstance(code, int) else 0)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            if debug:
                traceback.print_exc()
            line, code = _explain(error)
            _stderr(f"error: {line}", style="red")
            sys.exit(code)


def _begins_without_verb(word: str) -> bool:
    return word.startswith("--config") or ("=" in word and not word.startswith("-"))


def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _explain(error: Exception) -> tuple[str, int]:
    """Return the line to print for an error, and the exit code."""
    if hasattr(error, "format_message"):  # raised by typer: an unknown option, a missing argument
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
    if "torchvision::" in str(error):  # raised while torchvision is imported
        return (
            "torch and torchvision do not match: they are builds of different indexes or versions; install both "
            "together from one index, e.g. uv pip install --torch-backend=auto --reinstall torch torchvision"
        ), 2
    return f"{type(error).__name__}: {_one_line(str(error))} (a defect; --debug shows where)", 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _stderr(f"warning: {_one_line(str(message))}", style="yellow")


def _stderr(line: str, *, style: str) -> None:
    Console(stderr=True, highlight=False).print(line, style=style, markup=False, soft_wrap=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())
