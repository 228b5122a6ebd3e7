"""Questions about held-out scenes of the procedural world: accuracy by type, beside the majority and swapped images.

    uv run python benchmarks/edgeglass_vlm_world.py            # 16,000 scenes, 3 seeds: two hours of one core
    uv run python benchmarks/edgeglass_vlm_world.py --quick    # 400 scenes, one seed: does it run

The tiny language model learns to read the patch tokens of the tiny CLIP (`--config tiny_vlm`), from three epochs of
eight questions and three captions a scene. Each seed draws the projector, the adapters and the order anew, and is
tested once on a world of its own: 200 questions of each type, balanced so that their words alone tell nothing.
"majority" is one in the number of answers, "swapped" asks the model about the next image of the test.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from _measure import report

from clip_common.config import load_config
from clip_common.synthetic import write_questions
from edgeglass.config import VlmConfig
from edgeglass.scoring.vlm_score import ScoredVlm, score_vlm
from edgeglass.training.vlm_experiment import train_vlm

SIZE = 112


def draw(folder: Path, **counts: Any) -> Path:
    """Return a folder of questions, drawn if it is absent."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder if folder.exists() else write_questions(folder, size=SIZE, **counts)


def train_one(options: argparse.Namespace, *, seed: int) -> Path:
    """Return the run of a seed, trained if it is absent."""
    scenes = 400 if options.quick else options.scenes
    train = draw(
        options.folder / f"train-{scenes}", train=scenes, val=48, test=0, seed=11, per_picture=8, captions_per_picture=3
    )
    run = options.folder / "runs" / "edgeglass" / f"world-{scenes}-{seed}"
    if not (run / "model" / "config.json").exists():
        overrides = [
            f"data.root={train}",
            "prefix.name=tiny",
            "data.batch_size=32",
            "data.row_length=300",
            f"trainer.max_epochs={options.epochs}",
            f"decoder.name={options.decoder}",
            f"trainer.seed={seed}",
            f"runs={options.folder / 'runs'}",
            f"name={run.name}",
        ]
        config = load_config(VlmConfig, config="tiny_vlm", overrides=overrides, package="edgeglass")
        train_vlm(config, resume=run if run.exists() else None)
    return run


def score_one(options: argparse.Namespace, *, seed: int) -> ScoredVlm:
    """Score the model of a seed on a world of its own."""
    run = train_one(options, seed=seed)
    test = draw(options.folder / f"test-{seed}", train=0, val=0, test=200, seed=100 + seed)
    return score_vlm(run, overrides=[f"data.root={test}"], control="swapped")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which models are trained, and where."""
    parser.add_argument("--scenes", type=int, default=16_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--decoder", default="tiny")
    parser.add_argument("--folder", type=Path, default=Path("runs/vlm-world"))
    parser.add_argument("--quick", action="store_true")


def main() -> None:
    """Train and score what is not finished, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    scored = [score_one(options, seed=seed) for seed in range(1 if options.quick else options.seeds)]
    rows = []
    for type in scored[0].scores.accuracy:
        values = [one.scores.accuracy[type].value for one in scored]
        swapped = [one.swapped.accuracy[type].value for one in scored if one.swapped is not None]
        rows.append(
            {
                "type": type,
                "each seed": " ".join(f"{value:.3f}" for value in values),
                "mean": float(np.mean(values)),
                "majority": 1 / CHOICES[type] if type in CHOICES else "",
                "swapped, each seed": " ".join(f"{value:.3f}" for value in swapped),
            }
        )
    report("edgeglass_vlm_world", rows, note="accuracy on held-out scenes; majority: one in the number of answers")


CHOICES = {"colour": 8, "shape": 16, "place": 9, "yes/no": 2}
"""Number of answers to a question of a type, all as frequent; counts have three or four."""


if __name__ == "__main__":
    main()
