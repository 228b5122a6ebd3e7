"""What commands print: tables, files and problems on stdout, progress and announcements on stderr."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

console = Console(markup=False, emoji=False, highlight=False)  # file names may look like markup
"""Standard output, as plain text."""

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_DRAWINGS = 0.1


@contextmanager
def progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr: a bar on a terminal, a line every ten seconds in a pipe.

    Yields:
        `progress(done, total)`, to pass to the work.

    Example:
        with progress("decoding images") as report:
            check(root, progress=report)
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeRemainingColumn())
    # without rich's refresh thread, because worker processes are forked meanwhile
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


def announce(line: str) -> None:
    """Print one line on stderr, where progress is shown too."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)


def print_table(header: Sequence[str | Column], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table of plain text."""
    table = Table(*header, title=None if title is None else Text(title, style="table.title"), box=box.SIMPLE)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def print_notes(notes: Iterable[str]) -> None:
    """Print one line for each note, as it is."""
    for note in notes:
        console.print(note, soft_wrap=True, markup=False)


def print_files(label: str, files: Iterable[Path]) -> None:
    """Print one line for each file, e.g. `plot   runs/first/plots/loss.png`."""
    for file in files:
        console.print(f"{label:<6} {file}", soft_wrap=True)


def check_no_problems(root: Path, problems: Sequence[str], *, advice: str = "") -> None:
    """Print the problems of a data set, one line each, and raise ValueError if there are any.

    Args:
        root: The data set.
        problems: One line each.
        advice: What else can be done about them, appended to the error.
    """
    _print_lines(problems)
    if problems:
        raise ValueError(f"{root}: {len(problems)} problem(s), listed above{advice and f'; {advice}'}")


def check_all_read(failures: Mapping[Any, str], *, of: int, what: str) -> None:
    """Print why files could not be read, one line each, and raise ValueError if there are any.

    Args:
        failures: File → the problem in one line.
        of: How many files were given.
        what: What they are, e.g. `images`.
    """
    _print_lines(failures.values())
    if failures:
        raise ValueError(f"{len(failures)} of {of} {what} could not be read, listed above")


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)
