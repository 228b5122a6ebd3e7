"""videoclip on walking figures: does a video of a person never seen find its own map among 120?

    uv run python benchmarks/videoclip_retrieval.py            # forty minutes on two cores; called again, it continues
    uv run python benchmarks/videoclip_retrieval.py --quick    # few subjects, one epoch: a smoke test

300 subjects with two clips each, 64 px; seed s tests on fifth s of the subjects, 120 clips of 60 people. The full
method aligns ungated tokens on a grid; beside it, trained on another subject's maps, and aligned as published (gated
tokens, their mean), also tested with the map hidden from guidance.
"""

import argparse
from pathlib import Path
from statistics import mean

from _measure import report

from clip_common.config import load_config
from clip_common.runs.folder import is_run
from clip_common.synthetic import write_walking
from videoclip.config import Config
from videoclip.scoring.score import result_name, score
from videoclip.training.experiment import train

ARMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "grid, ungated": ((), ()),
    "grid, ungated, map hidden from guidance": ((), ("data.control=hidden",)),
    "grid, ungated, trained on another subject's maps": (("data.control=shuffled",), ("data.control=none",)),
    "mean, gated (published)": (("model.align_pool=mean", "model.align_tokens=gated"), ()),
    "mean, gated (published), map hidden from guidance": (
        ("model.align_pool=mean", "model.align_tokens=gated"),
        ("data.control=hidden",),
    ),
}
"""Arm → overrides of its training and of its test."""
METRICS = ("retrieval_r1_v2a", "retrieval_r1_a2v", "retrieval_r5_v2a", "retrieval_r5_a2v", "retrieval_r1_v2a_regions")


def measure(
    folder: Path, seed: int, training: tuple[str, ...], tested: tuple[str, ...], *, quick: bool
) -> dict[str, float]:
    """Train a run, or go on with one, and return the metrics of its test subjects."""
    name = "-".join(["s", str(seed), *(text.split("=")[1] for text in training)])
    small = ["trainer.max_epochs=1", "data.size=32"] if quick else ["trainer.max_epochs=16"]
    overrides = [f"data.root={folder / 'walks'}", f"runs={folder}", f"name={name}", f"data.fold={seed}", *small]
    settings = [*overrides, f"trainer.seed={seed}", "select=retrieval_r5", *training]
    config = load_config(Config, config="walking", overrides=settings, package="videoclip")
    path = folder / "videoclip" / name
    run = train(config, resume=path if is_run(path) else None).run
    config_tested = load_config(Config, config="walking", overrides=[*settings, *tested], package="videoclip")
    result = result_name(config, config_tested)
    if result not in run.result:
        score(run.path, overrides=tested)
    metrics: dict[str, float] = run.result[result]["metrics"]
    return metrics


def main() -> None:
    """Draw the set, train every arm with every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "videoclip-retrieval")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    if not (options.folder / "walks").exists():
        write_walking(options.folder / "walks", subjects=30 if options.quick else 300, clips_per_subject=2, size=64)
    rows = []
    for arm, (training, tested) in ARMS.items():
        found = [measure(options.folder, seed, training, tested, quick=options.quick) for seed in seeds]
        of_seeds = {name: [metrics[name] for metrics in found] for name in METRICS}
        rows.append(
            {"aligned": arm}
            | {name.removeprefix("retrieval_"): f"{mean(values):.3f}" for name, values in of_seeds.items()}
            | {"r1 of each seed": " ".join(f"{value:.3f}" for value in of_seeds["retrieval_r1_v2a"])}
        )
        chance = {name: found[0][f"retrieval_{name}"] for name in ("r1_chance", "r5_chance", "r1_chance_regions")}
    note = ", ".join(f"{name} {value:.3f}" for name, value in chance.items())
    report("videoclip_retrieval", rows, note=f"chance: {note}; seeds {', '.join(map(str, seeds))}")


if __name__ == "__main__":
    main()
