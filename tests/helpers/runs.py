"""Runs compared with each other, and runs killed at a chosen moment."""

import csv
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from clip_common.tensors import read_tensors

SECONDS = 120.0
"""Longest wait for the moment of a kill."""


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a run's model."""
    (file,) = (run / "model").glob("*model.safetensors")  # open_clip's name for a CLIP, else transformers'
    return read_tensors(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether weights are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def kill_when(reached: Callable[[], bool], command: Sequence[object]) -> None:
    """Start a process, and kill it with SIGKILL as soon as `reached()`; fail if it ended before."""
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None and not reached():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error


def count_lines(file: Path) -> int:
    """Return the number of lines of a file; 0 if it does not exist yet."""
    return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0
