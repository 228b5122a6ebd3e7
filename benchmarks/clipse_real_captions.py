"""Real captions, real towers: clipse's trained heads beside a ridge map from image features to text features.

    uv run python benchmarks/clipse_real_captions.py            # CLIP loss and both SANW losses
    uv run python benchmarks/clipse_real_captions.py --seeds 3 --quick

Both see the same 600 training images of the Karpathy set and are selected on 100 of them (the ridge by its penalty,
clipse by its epoch); the 201 test images are scored once. Nothing is tuned on them.
"""

import argparse
import os
import shutil
from pathlib import Path

from _measure import report
from _ridge import Pairs, map_by_ridge

from clip_common.backbones import load_dual
from clip_common.config import load_config
from clip_common.features import FeatureCache
from clip_common.metrics import ImageTextResult, image_text_retrieval
from clipse import Config, read_records, train
from clipse.config import DataConfig
from clipse.data import ImageRecord
from clipse.scoring.embedding import find_owners
from clipse.scoring.score import score as score_run

ASSETS = Path(os.environ.get("CLIP_REAL_ASSETS", Path.home() / ".cache" / "clip-real-assets"))
CAPTIONS = Path(__file__).resolve().parents[2] / "shared" / "assets" / "data" / "captions"
HOLD_OUT = 100
KEYS = ("t2i/R@1", "t2i/R@5", "t2i/R@10", "i2t/R@1", "i2t/R@5", "i2t/R@10", "rsum")


def read_pairs(cache: FeatureCache, records: list[ImageRecord], towers: dict[str, Path]) -> Pairs:
    """Return the features of a split."""
    bundle = load_dual(vision=towers["vision"], text=towers["text"])
    return Pairs(
        cache.features(bundle.image, [record.path for record in records]),
        cache.features(bundle.text, [caption for record in records for caption in record.captions]),
        find_owners(records),
    )


def score_ridge(cache: FeatureCache, splits: dict[str, list[ImageRecord]], towers: dict[str, Path]) -> ImageTextResult:
    """Score the ridge map on the test images."""
    mapped = map_by_ridge({name: read_pairs(cache, records, towers) for name, records in splits.items()})
    return image_text_retrieval(mapped.image_NT, mapped.text_MT, find_owners(splits["test"]))


def make_row(method: str, seed: int | str, result: ImageTextResult) -> dict[str, object]:
    low, high = result.intervals["rsum"]
    values: dict[str, object] = {key: round(result.metrics[key], 3 if key != "rsum" else 1) for key in KEYS}
    return {"method": method, "seed": seed} | values | {"rsum 95 %": f"{low:.1f}-{high:.1f}"}


def train_and_score(loss: str, seed: int, options: argparse.Namespace, towers: dict[str, Path]) -> ImageTextResult:
    """Train one clipse run on the same split, and score it on the test images."""
    name = f"{loss}-{seed}"
    overrides = [
        *(f"model.{tower}={path}" for tower, path in towers.items()),
        f"data.root={options.captions}",
        f"data.hold_out={HOLD_OUT}",
        f"loss.name={loss}",
        "loss.references=frozen",
        f"trainer.seed={seed}",
        f"runs={options.runs}",
        f"results={options.runs / 'results'}",
        f"name={name}",
        *(["trainer.max_epochs=10"] if options.quick else []),
    ]
    shutil.rmtree(options.runs / "clipse" / name, ignore_errors=True)
    run = train(load_config(Config, config="dual", overrides=overrides, package="clipse")).run
    return score_run(str(run.path)).evaluation.result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, default=CAPTIONS)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "real-captions")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="10 epochs and one seed: does it run")
    options = parser.parse_args()
    towers = {"vision": ASSETS / "dinov2", "text": ASSETS / "minilm"}
    for part in (*towers.values(), options.captions):
        if not part.exists():
            parser.error(f"{part} is absent: this benchmark needs real weights and images, see CONTRIBUTING.md")
    config = DataConfig(root=str(options.captions), hold_out=HOLD_OUT)
    rows = [
        make_row(
            "ridge",
            "",
            score_ridge(FeatureCache(options.runs / "cache" / "features"), read_records(config).splits, towers),
        )
    ]
    for loss in ("clip", "sanw_debias", "sanw_bandpass"):
        for seed in range(1 if options.quick else options.seeds):
            rows.append(make_row(loss, seed, train_and_score(loss, seed, options, towers)))
    report("clipse_real_captions", rows, note="test: 201 images, 1005 captions; recalls as fractions, rsum of 600")
