"""The phase ledger: which fits of a run are done, so that a resumed run goes on at the right one."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from clip_common.runs.files import read_json, write_json


class PhaseLedger:
    """phases.json: for each phase (a stage, loop, fold or seed) when it started, when it finished and what it left.

    `clip_common.training.fit` keeps its own phase; a run of several fits names them and calls `fit(..., resume=True)`
    for each: those that are done return at once. Work that is no fit keeps itself:

        if not run.ledger.done("evaluate"):
            run.ledger.start("evaluate")
            run.ledger.finish("evaluate", {"rsum": evaluate(model)})
        rsum = run.ledger.payload("evaluate")["rsum"]
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def phases(self) -> dict[str, dict[str, Any]]:
        """Name → {started, finished, payload}, in the order of their first start."""
        return dict(read_json(self.path))

    def started(self, phase: str) -> bool:
        """Whether `phase` was ever started."""
        return phase in self.phases()

    def done(self, phase: str) -> bool:
        """Whether `phase` has finished."""
        return "finished" in self.phases().get(phase, {})

    def payload(self, phase: str) -> dict[str, Any]:
        """What `finish` was given; empty where the phase has not finished."""
        return dict(self.phases().get(phase, {}).get("payload", {}))

    def start(self, phase: str) -> None:
        """Note that `phase` runs: after a kill it keeps the time of its first start, once done it starts anew."""
        phases = self.phases()
        if phase not in phases or self.done(phase):
            write_json(self.path, phases | {phase: {"started": now()}})

    def finish(self, phase: str, payload: Mapping[str, Any] | None = None) -> None:
        """Note that `phase` is done, with what later phases need of it (JSON values; paths relative to the run)."""
        phases = self.phases()
        entry = phases.get(phase, {}) | {"finished": now(), "payload": dict(payload or {})}
        write_json(self.path, phases | {phase: entry})


def now() -> str:
    """Local time, to the second, with its offset."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
