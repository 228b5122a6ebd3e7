"""Trainings in processes of their own: killed and resumed, and on two ranks."""

import os
import subprocess
import sys
from pathlib import Path

from helpers.runs import count_lines, kill_when, rows, same, weights


def make_script(*, schema: str, train: str) -> str:
    """The text of a script that trains: `fresh OVERRIDE…` or `resume RUN`.

    Args:
        schema: Name of the configuration's class in `edgeglass.config`.
        train: Full name of the function.
    """
    module, _, function = train.rpartition(".")
    return f"""
import sys
from pathlib import Path
from functools import partial
from clip_common.runs.resolve import resolve as resolve_run
from edgeglass.config import {schema}
from {module} import {function}
resolve = partial(resolve_run, {schema}, package="edgeglass")
resume = Path(sys.argv[2]) if sys.argv[1] == "resume" else None
{function}(resolve(resume=resume) if resume else resolve(overrides=sys.argv[2:]), resume=resume)
"""


def check_killed_equals(whole: Path, script: str, overrides: list[str], *, monitor: str) -> None:
    """Train with the same overrides, be killed at some step, resume, and end as the uninterrupted run did.

    Args:
        whole: The uninterrupted run.
        script: Of `make_script`.
        overrides: Those of `whole`, without its name.
        monitor: Column of metrics.csv with the value of each epoch.
    """
    killed = whole.with_name("killed")
    metrics = killed / "metrics.csv"
    after = 4 + os.urandom(1)[0] % 8
    kill_when(lambda: count_lines(metrics) > after, [sys.executable, "-c", script, "fresh", *overrides, "name=killed"])
    assert not (killed / "model").exists(), "it had finished before it was killed"
    done = subprocess.run([sys.executable, "-c", script, "resume", str(killed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same(weights(whole), weights(killed))
    expected, found = (
        [(row["epoch"], row["step"], row["train/loss"], row[monitor]) for row in rows(run / "metrics.csv")]
        for run in (whole, killed)
    )
    assert found == expected


def train_on_two_ranks(script: str, overrides: list[str], folder: Path) -> Path:
    """Train on two CPU processes, and return the run named `two` below `folder`."""
    file = folder / "script.py"  # a file: Lightning starts the second rank by the same command
    file.write_text(script, encoding="utf-8")
    options = [*overrides, "trainer.devices=cpu:2", "trainer.strategy=ddp"]
    done = subprocess.run(
        [sys.executable, file, "fresh", *options], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "edgeglass" / "two"
