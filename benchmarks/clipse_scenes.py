"""From scratch on drawn scenes: how far above chance a few minutes on two cores get, CLIP beside both SANW losses.

    uv run python benchmarks/clipse_scenes.py                  # 5 seeds of three losses, four epochs each
    uv run python benchmarks/clipse_scenes.py --quick          # one seed, two epochs: does it run

Weights are selected on the validation scenes; the table is of the test scenes, which nothing was tuned on.
"""

import argparse
import shutil
import statistics
from pathlib import Path

from _measure import report

from clip_common.config import load_config
from clip_common.metrics import paired_bootstrap
from clip_common.synthetic import write_flickr8k
from clipse import Config, score, train
from clipse.scoring.evaluation import Evaluation

LOSSES = ("clip", "sanw_debias", "sanw_bandpass")


def train_and_score(loss: str, seed: int, options: argparse.Namespace) -> Evaluation:
    """Train one run from scratch and score its best weights on the test scenes."""
    name = f"{loss}-{seed}"
    overrides = [
        f"data.root={options.folder / 'scenes'}",
        f"runs={options.folder}",
        f"results={options.folder / 'results'}",
        f"name={name}",
        f"loss.name={loss}",
        f"trainer.seed={seed}",
        f"trainer.max_epochs={options.epochs}",
    ]
    shutil.rmtree(options.folder / "clipse" / name, ignore_errors=True)
    run = train(load_config(Config, config="scenes", overrides=overrides, package="clipse")).run
    return score(str(run.path)).evaluation


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "scenes-benchmark")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.epochs = 2 if options.quick else options.epochs
    if not (options.folder / "scenes").exists():
        write_flickr8k(options.folder / "scenes", train=3000, val=200, test=500, seed=0)
    seeds = range(1 if options.quick else options.seeds)
    scores = {loss: [train_and_score(loss, seed, options) for seed in seeds] for loss in LOSSES}
    rows = []
    for loss, evaluations in scores.items():
        rsums = [evaluation.result.metrics["rsum"] for evaluation in evaluations]
        pairs = [
            paired_bootstrap(one.result, base.result) for one, base in zip(evaluations, scores["clip"], strict=True)
        ]
        rows.append(
            {
                "loss": loss,
                "rsum mean": round(statistics.mean(rsums), 1),
                "sd": round(statistics.stdev(rsums), 1) if len(rsums) > 1 else "",
                "lowest seed": round(min(rsums), 1),
                "minus CLIP, by seed": " ".join(f"{pair.difference:+.1f}" for pair in pairs),
                "seeds above CLIP (95 %)": sum(pair.low > 0 for pair in pairs),
                "seeds below CLIP (95 %)": sum(pair.high < 0 for pair in pairs),
            }
        )
    first = scores["clip"][0]
    note = (
        f"{first.images} test images; chance {first.chance:.1f}, attribute oracle {first.ceiling['rsum']:.1f}, of 600"
    )
    report("clipse_scenes", rows, note=note)
