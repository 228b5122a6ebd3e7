"""aaclip on the procedural world: trained on defects of twelve kinds, tested on four unseen ones.

    uv run python benchmarks/aaclip_world.py             # three seeds; half an hour on two cores
    uv run python benchmarks/aaclip_world.py --quick     # one seed, few images: does it run

The baseline is plain CLIP with the same prompts and maps. An untrained map says little about an image, so its class
token alone, the harder baseline, has a row too. Each seed draws its own sets and trains from scratch; intervals are a
bootstrap over the test images. No training image of aaclip or of the tiny CLIP shows a defect of the tested kinds.
"""

import argparse
import shutil
from pathlib import Path

from _measure import report

from aaclip.detector.calibration import Logistic
from aaclip.detector.detector import Detector
from aaclip.scoring.evaluation import Evaluation, evaluate
from aaclip.scoring.score import read_test_records
from aaclip.training.experiment import resolve, train
from clip_common.synthetic import write_mvtec
from clip_common.synthetic.parts import HELD_KINDS
from clip_common.synthetic.scenes import KINDS

KEYS = ("pixel/auroc", "image/auroc", "pixel/aupro")


def make_rows(name: str, seed: int, found: Evaluation) -> list[dict[str, object]]:
    """Return one row for each class, and one of means."""
    rows: list[dict[str, object]] = []
    for kind, values in found.classes.items():
        row: dict[str, object] = {"model": name, "seed": seed, "kind": kind}
        for key in KEYS:
            low, high = found.intervals[kind][key]
            row[key] = f"{values[key]:.3f} ({low:.3f}-{high:.3f})"
        rows.append(row)
    means = {key: f"{value:.3f}" for key, value in found.mean.items() if key in KEYS and value is not None}
    return [*rows, {"model": name, "seed": seed, "kind": "mean", **means}]


def main() -> None:
    """Draw, train and test, for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs") / "aaclip-world")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--good", type=int, default=40, help="flawless training images a kind")
    parser.add_argument("--damaged", type=int, default=12, help="training images a kind and defect")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    seeds, known = (1, KINDS[:2]) if options.quick else (options.seeds, tuple(k for k in KINDS if k not in HELD_KINDS))
    good, damaged = (4, 2) if options.quick else (options.good, options.damaged)
    rows: list[dict[str, object]] = []
    for seed in range(1, seeds + 1):
        place = options.folder / str(seed)
        shutil.rmtree(place, ignore_errors=True)
        write_mvtec(place / "train", kinds=known, train=0, good=good, damaged=damaged, seed=2 * seed)
        write_mvtec(place / "test", kinds=HELD_KINDS, train=0, good=40, damaged=10, seed=2 * seed + 1)
        records = read_test_records(place / "test")
        plain = Detector.plain("tiny")
        rows += make_rows("plain CLIP", seed, evaluate(plain, records))
        plain.score = Logistic(a=50.0, b=0.0, c=0.0)
        rows += make_rows("plain CLIP, class token alone", seed, evaluate(plain, records))
        paths = [f"data.root={place / 'train'}", f"runs={place / 'runs'}", "name=world", f"trainer.seed={seed}"]
        trained = train(resolve(config="tiny", overrides=[*paths, *options.overrides]))
        assert trained.detector is not None
        rows += make_rows("aaclip", seed, evaluate(trained.detector, records))
    report("aaclip_world", rows, note=f"{len(known)} kinds, {good} flawless and {damaged} of each defect a kind")


if __name__ == "__main__":
    main()
