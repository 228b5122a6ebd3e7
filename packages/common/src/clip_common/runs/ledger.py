"""The phase ledger: which fits of a run are done, so that a resumed run continues with the right one."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from clip_common.runs.files import read_json, write_json


class PhaseLedger:
    """phases.json: for each phase (a stage, loop, fold or seed) when it started and finished, and its payload.

    `clip_common.training.fit` records its own phase. A run of several fits names each one and calls
    `fit(..., resume=True)` for all: those that are done return at once. Record other work like this:

        if not run.ledger.done("evaluate"):
            run.ledger.start("evaluate")
            run.ledger.finish("evaluate", {"rsum": evaluate(model)})
        rsum = run.ledger.payload("evaluate")["rsum"]
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def phases(self) -> dict[str, dict[str, Any]]:
        """Return name → {started, finished, payload}, in the order of first starts."""
        return dict(read_json(self.path))

    def started(self, phase: str) -> bool:
        """Return whether `phase` was ever started."""
        return phase in self.phases()

    def done(self, phase: str) -> bool:
        """Return whether `phase` has finished."""
        return "finished" in self.phases().get(phase, {})

    def payload(self, phase: str) -> dict[str, Any]:
        """Return the payload that `finish` recorded; empty if the phase has not finished."""
        return dict(self.phases().get(phase, {}).get("payload", {}))

    def start(self, phase: str) -> None:
        """Record that `phase` runs. A killed phase keeps the time of its first start; a finished one starts again."""
        phases = self.phases()
        if phase not in phases or self.done(phase):
            write_json(self.path, phases | {phase: {"started": now()}})

    def finish(self, phase: str, payload: Mapping[str, Any] | None = None) -> None:
        """Record that `phase` is done, with a payload for later phases (JSON values; paths relative to the run)."""
        phases = self.phases()
        entry = phases.get(phase, {}) | {"finished": now(), "payload": dict(payload or {})}
        write_json(self.path, phases | {phase: entry})


def now() -> str:
    """Return the local time with its UTC offset, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
