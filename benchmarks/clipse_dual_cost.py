"""What a run with locked towers costs around its training, and a comparison of two losses over ten seeds.

    uv run python benchmarks/clipse_dual_cost.py            # ten minutes on two cores
    uv run python benchmarks/clipse_dual_cost.py --quick    # two seeds, 20 epochs each

DINOv2-small and MiniLM are locked; their features of 600 training and 100 validation images are cached by a first run.
Processor seconds: the fit itself, and everything else that `train` does (towers, cached features, scores, plots). The
first run of a process also imports the libraries that read the towers.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from _measure import report

from clip_common.config import load_config
from clip_common.training import fit
from clipse import Config, train
from clipse.series.compare import compare

ASSETS = Path(os.environ.get("CLIP_REAL_ASSETS", Path.home() / ".cache" / "clip-real-assets"))
CAPTIONS = Path(__file__).resolve().parents[2] / "shared" / "assets" / "data" / "captions"


def measure_run(overrides: list[str]) -> tuple[float, float]:
    """Return the processor seconds of a run's fit, and of the rest of `train`."""
    fitting = 0.0

    def timed(*arguments: Any, **keywords: Any) -> object:
        nonlocal fitting
        start = time.process_time()
        result = fit(*arguments, **keywords)
        fitting = time.process_time() - start
        return result

    start = time.process_time()
    with patch("clipse.training.experiment.fit", timed):
        train(load_config(Config, config="dual", overrides=overrides, package="clipse"))
    return fitting, time.process_time() - start - fitting


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, default=CAPTIONS)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "dual-cost")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    towers = {"vision": ASSETS / "dinov2", "text": ASSETS / "minilm"}
    for part in (*towers.values(), options.captions):
        if not part.exists():
            parser.error(f"{part} is absent: this benchmark needs real weights and images, see CONTRIBUTING.md")
    base = [
        *(f"model.{tower}={path}" for tower, path in towers.items()),
        f"data.root={options.captions}",
        "data.hold_out=100",
        f"runs={options.runs}",
        f"results={options.runs / 'results'}",
    ]
    rows: list[dict[str, object]] = []
    for what in ("first of the process", "second"):
        fitting, rest = measure_run([*base, "trainer.max_epochs=20"])
        rows.append({"what": f"20 epochs, {what}", "fit, s": round(fitting, 1), "rest, s": round(rest, 1)})
        rows[-1]["rest / fit"] = round(rest / fitting, 2)
    seeds = range(2 if options.quick else 10)
    epochs = ["trainer.max_epochs=20"] if options.quick else []
    config = load_config(Config, config="dual", overrides=[*base, *epochs, f"name=c{time.time_ns()}"], package="clipse")
    start, cpu = time.perf_counter(), time.process_time()
    found = compare(config, losses=["clip", "sanw_debias"], seeds=list(seeds), split="test")
    minutes = (time.perf_counter() - start) / 60
    what = f"compare, 2 losses x {len(seeds)} seeds x {config.trainer.max_epochs} epochs: {minutes:.1f} min"
    rows.append({"what": what, "fit, s": f"{time.process_time() - cpu:.0f} in all"})
    against = found.rows[1].against
    assert against is not None
    note = ", ".join(f"{row.label} {row.mean:.1f}" for row in found.rows)
    report("clipse_dual_cost", rows, note=f"test rsum: {note}; difference {against.low:+.1f} to {against.high:+.1f}")
