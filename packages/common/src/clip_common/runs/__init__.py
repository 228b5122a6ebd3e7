"""Run folders `runs/<package>/<name>/`: configuration, environment, metrics, checkpoints, result, model card.

    run = Run.create("clipse", name="first", config_yaml=to_yaml(config))
    run.metrics.append({"step": 1, "train/loss": 4.2})
    run.write_result({"rsum": 231.4})
    run.register({"rsum": 231.4})

A kill or a full disk leaves the previous state intact. Nothing here imports torch.
"""

from clip_common.runs.files import write_atomically, write_json
from clip_common.runs.folder import Run, RunExistsError
from clip_common.runs.ledger import PhaseLedger
from clip_common.runs.table import MetricsCsv, append_row, read_rows

__all__ = [
    "MetricsCsv",
    "PhaseLedger",
    "Run",
    "RunExistsError",
    "append_row",
    "read_rows",
    "write_atomically",
    "write_json",
]
