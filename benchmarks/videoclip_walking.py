"""videoclip on walking figures: the experiment table with three seeds; wrong maps and no map in the test with five.

    uv run python benchmarks/videoclip_walking.py             # thirty minutes on two cores
    uv run python benchmarks/videoclip_walking.py --quick     # few subjects, one epoch: a smoke test

Sixty subjects with two clips each, 64 px. Each seed tests another fifth of the subjects, so with five seeds each
subject is tested once, by a model that never saw it. The further tables reuse the runs of the first.
"""

import argparse
import shutil
import time
from pathlib import Path

from _measure import report

from clip_common.synthetic import write_walking
from videoclip.series.ablation import (
    COLUMNS,
    Ablation,
    Table,
    ablate,
    compose_caption,
    format_difference,
    resolve_ablation,
)


def rows_of(found: Ablation) -> list[dict[str, object]]:
    """Return one row per method, and the majority baseline."""
    rows: list[dict[str, object]] = [
        {
            "ID": result.row.id,
            "method": result.row.what,
            **{label: result.cell(name) for name, label in COLUMNS.items()},
            "macro F1 minus B0": format_difference(result.against),
        }
        for result in found.results
    ]
    baseline = {label: f"{found.majority[name]:.3f}" for name, label in COLUMNS.items() if name in found.majority}
    return [*rows, {"ID": "", "method": "always the most frequent class", **baseline}]


def main() -> None:
    """Make the data set and fill the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "videoclip-walking")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    walks = options.folder / "walks"
    write_walking(walks, subjects=30 if options.quick else 60, clips_per_subject=2, size=64)
    quick = ["trainer.max_epochs=1", "data.size=32"] if options.quick else []
    overrides = [f"data.root={walks}", f"runs={options.folder}", *quick, *options.overrides]
    tables: tuple[tuple[Table, int], ...] = (("all", 3), ("controls", 5), ("nomap", 5))
    for table, count in tables:
        settings, _ = resolve_ablation(config="walking", overrides=overrides)
        begin = time.perf_counter()
        found = ablate(settings, table=table, seeds=range(count), announce=print)
        minutes = (time.perf_counter() - begin) / 60
        again = "" if table == "all" else ", the runs of the first table reused"
        note = f"{compose_caption(found, settings)} {minutes:.1f} minutes{again}."
        report(f"videoclip_walking_{table}", rows_of(found), note=note)


if __name__ == "__main__":
    main()
