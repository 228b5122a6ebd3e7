"""Measurements shared by the benchmarks: time by alternated pairs, peak memory in a fresh process, table and JSON file.

The machines are shared and noisy, so time is reported as the median ratio of alternated pairs, beside the median
seconds of each arm. A peak is measured in a fresh process, above the memory resident after inputs and warm-up.
"""

import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    """Medians over alternated pairs: seconds of each arm, and `ratio`, the median of ours / theirs within a pair."""

    ours_s: float
    theirs_s: float
    ratio: float


def alternate(ours: Callable[[], object], theirs: Callable[[], object], *, pairs: int = 7, warmup: int = 2) -> Timing:
    """Time `ours` and `theirs` in pairs, in alternating order, so that a slow spell of the machine hits both."""
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


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """Run `count` processes that keep a core busy, as long as the block lasts."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(0.5 if others else 0.0)  # until they have started
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def compare_busy(
    what: str, ours: Callable[[], object], theirs: Callable[[], object], *, busy: Sequence[int], pairs: int = 15
) -> list[dict[str, object]]:
    """Return a row for a quiet machine and for each number of busy processes beside it.

    "kept" is the share of the quiet advantage that is left: theirs / ours beside them, divided by the quiet one.
    """
    rows: list[dict[str, object]] = []
    quiet = None
    for count in (0, *busy):
        with spinning(count):
            timing = alternate(ours, theirs, pairs=pairs)
        quiet = quiet or timing.ratio
        rows.append(
            {
                "what": what,
                "busy": count,
                "ours s": timing.ours_s,
                "theirs s": timing.theirs_s,
                "time ratio": timing.ratio,
                "kept": quiet / timing.ratio,
            }
        )
    return rows


class PeakMemory:
    """Peak memory of a block in MiB above its start: resident memory (Linux), or torch's counter on CUDA.

    Run each arm in its own process (`arm_in_own_process`): an allocator may keep memory that an earlier arm freed.
    """

    mib: float = 0.0

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated() / 2**20
            return self
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the current resident size
        self._before = _read_status_mib("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        peak = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else _read_status_mib("VmHWM")
        self.mib = peak - self._before


def _read_status_mib(field: str) -> float:
    """Return a memory field of /proc/self/status in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: run the memory benchmarks on Linux")


def arm_in_own_process(script: str, arm: str, *arguments: str) -> dict[str, Any]:
    """Run `python script --arm ARM …` and return the JSON object on its last line of output."""
    command = [sys.executable, script, "--arm", arm, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def report(name: str, rows: Sequence[Mapping[str, Any]], *, note: str = "") -> None:
    """Print `rows` as a table, then the machine; write both to results/benchmarks/NAME.json."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(title=name)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_format_cell(row.get(column, "")) for column in columns))
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
    console.print(f"Results: {file}")


def _format_cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
