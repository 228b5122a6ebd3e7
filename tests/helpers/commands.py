"""Calls of a command line in this process, and what they must have done."""

import warnings

import pytest

from clip_common.cli import Application

Result = tuple[int, str, str]
"""Exit code, stdout and stderr."""


def call(app: Application, capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Run a command line and return what it did."""
    capsys.readouterr()  # drop what fixtures printed
    with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
        app([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


def refused(result: Result, *words: str) -> None:
    """Assert that a command ended with exit code 2 and one line on stderr that holds these words."""
    code, _, error = result
    lines = [line for line in error.splitlines() if line.strip()]
    assert code == 2, error
    assert len(lines) == 1, f"not one line:\n{error}"
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"


def succeeded(result: Result) -> str:
    """Assert that a command succeeded, and return what it printed."""
    code, printed, error = result
    assert code == 0, error
    return printed
