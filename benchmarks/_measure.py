"""How every benchmark measures: alternated pairs for time, a process of its own for memory, a table and a JSON file.

The machines are shared and noisy, so a figure is a ratio of medians over alternated pairs, never one absolute time,
and a peak is read in a fresh process, above what was resident once inputs were made and the code was warm.
"""

import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path("results/benchmarks")


@dataclass(frozen=True)
class Timing:
    """Medians of alternated pairs, in seconds; `ratio` is the median of ours / theirs, pair by pair."""

    ours_s: float
    theirs_s: float
    ratio: float


def alternate(ours: Callable[[], object], theirs: Callable[[], object], *, pairs: int = 7, warmup: int = 2) -> Timing:
    """Run `ours` and `theirs` in turn, swapping who goes first, so that a slow spell of the machine hits both."""
    for _ in range(warmup):
        ours()
        theirs()
    spent: dict[str, list[float]] = {"ours": [], "theirs": []}
    for pair in range(pairs):
        arms = [("ours", ours), ("theirs", theirs)]
        for name, arm in arms if pair % 2 == 0 else reversed(arms):
            gc.collect()
            start = time.perf_counter()
            arm()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            spent[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(spent["ours"], spent["theirs"], strict=True)]
    return Timing(statistics.median(spent["ours"]), statistics.median(spent["theirs"]), statistics.median(ratios))


class PeakMemory:
    """Peak resident memory of a block above what was resident as it began, in MiB (Linux); on CUDA torch's counter.

    Run each arm in its own process (`arm_in_own_process`): memory that an earlier arm freed is not always given back.
    """

    mib: float = 0.0

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 2**20
            return self
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to what is resident now
        self._before = _status_mib("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _status_mib("VmHWM")
        self.mib = peak - self._before


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory can be read on Linux only")


def arm_in_own_process(script: str, arm: str, *arguments: str) -> dict[str, Any]:
    """Run `python script --arm ARM …` and return the JSON object on its last line of output."""
    command = [sys.executable, script, "--arm", arm, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def report(name: str, rows: Sequence[Mapping[str, Any]], *, note: str = "") -> None:
    """Print `rows` as a table with the machine under it, and write both to results/benchmarks/NAME.json."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=name)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    console.print(", ".join(f"{key} {value}" for key, value in machine.items()))
    if note:
        console.print(note)
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps({"name": name, "machine": machine, "rows": list(rows), "note": note}, indent=2) + "\n")
    console.print(f"written to {file}")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
