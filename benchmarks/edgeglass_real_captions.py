"""Real captions, real encoders: edgeglass beside a ridge map from image features to text features, at every width.

    uv run python benchmarks/edgeglass_real_captions.py            # negatives of the batch and of the corpus, 5 seeds
    uv run python benchmarks/edgeglass_real_captions.py --quick    # 5 epochs and one seed: does it run

Both see the 600 training images of the Karpathy set and are selected on 100 of them: the ridge by its penalty, before
it is fitted on all 600; edgeglass by its epoch, so that it trains on 500 only. The settings of `--config
small_captions` were chosen on held-out training images too. The 201 test images are scored once. Differences are those
of rsum, by a paired bootstrap over images and seeds.

The ridge maps into the space of the text features, whose numbers are in no order of importance, so it is compared three
times: by its first d numbers, by its first d principal axes of the training captions, and by all of them.
"""

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from _measure import report
from _ridge import Pairs, map_by_ridge
from torch import Tensor

from clip_common.config import load_config
from clip_common.features import FeatureCache
from clip_common.metrics import ImageTextResult, image_text_retrieval, paired_bootstrap
from edgeglass.aligner.aligner import Aligner
from edgeglass.config import Config
from edgeglass.data import Sample, read_samples
from edgeglass.data.items import collect_items
from edgeglass.models.building import build_encoders
from edgeglass.scoring.embedding import embed_split
from edgeglass.training.experiment import train

ASSETS = Path(os.environ.get("CLIP_REAL_ASSETS", Path.home() / ".cache" / "clip-real-assets"))
CAPTIONS = Path(__file__).resolve().parents[2] / "shared" / "assets" / "data" / "captions"
KEYS = ("t2i/R@1", "t2i/R@5", "t2i/R@10", "i2t/R@1", "i2t/R@5", "i2t/R@10", "rsum")
WHOLE = "ridge, whole"


def read_config(options: argparse.Namespace, *, negatives: str, seed: int) -> Config:
    """Return the configuration of one run."""
    overrides = [
        f"data.root={options.captions}",
        f"encoders.vision.name={ASSETS / 'dinov2'}",
        f"encoders.text.name={ASSETS / 'minilm'}",
        f"loss.negatives={negatives}",
        f"trainer.seed={seed}",
        f"runs={options.runs}",
        f"name={negatives}-{seed}",
        *(["trainer.max_epochs=5"] if options.quick else []),
    ]
    return load_config(Config, config="small_captions", overrides=overrides, package="edgeglass")


def list_captions(samples: Sequence[Sample]) -> tuple[list[int], Tensor]:
    """Return each caption of each sample: its row among the different captions, and its sample."""
    rows = collect_items(samples)["text"].rows
    owner_M = torch.tensor([sample for sample, own in enumerate(rows) for _ in own])
    return [row for own in rows for row in own], owner_M


def score_ridge(
    config: Config, cache: FeatureCache, splits: dict[str, list[Sample]]
) -> dict[str, dict[int, ImageTextResult]]:
    """Score the ridge map on the test images: its first numbers, its principal axes, and the whole, at each width."""
    encoders = build_encoders(config)

    def read(samples: list[Sample]) -> Pairs:
        items = collect_items(samples)
        rows, owner_M = list_captions(samples)
        text_RF = cache.features(encoders["text"].encoder, items["text"].sources)
        return Pairs(cache.features(encoders["image"].encoder, items["image"].sources), text_RF[rows], owner_M)

    pairs = {name: read(samples) for name, samples in splits.items()}
    mapped = map_by_ridge(pairs)
    image_NT, text_MT = mapped.image_NT, mapped.text_MT

    def score(image_ND: Tensor, text_MD: Tensor) -> ImageTextResult:
        return image_text_retrieval(image_ND, text_MD, pairs["test"].owner_M)

    whole = score(image_NT, text_MT)
    image_turned_NT, text_turned_MT = image_NT @ mapped.axes_TT, text_MT @ mapped.axes_TT
    widths = config.mrl.widths
    return {
        WHOLE: dict.fromkeys(widths, whole),
        "ridge, first d": {width: score(image_NT[:, :width], text_MT[:, :width]) for width in widths},
        "ridge, axes": {width: score(image_turned_NT[:, :width], text_turned_MT[:, :width]) for width in widths},
    }


def train_and_score(config: Config, cache: FeatureCache, samples: list[Sample]) -> dict[int, ImageTextResult]:
    """Train one run and score it on the test images, at each width."""
    shutil.rmtree(Path(config.runs) / "edgeglass" / str(config.name), ignore_errors=True)
    model = Aligner.from_pretrained(train(config).run.path).model
    split = embed_split(model, samples, config, cache=cache)
    rows, owner_M = list_captions(samples)
    image_ND, text_MD = split.vectors["image"], split.vectors["text"][rows]
    return {
        width: image_text_retrieval(image_ND[:, :width], text_MD[:, :width], owner_M) for width in config.mrl.widths
    }


def make_row(method: str, width: int, results: Sequence[ImageTextResult]) -> dict[str, object]:
    """Return the means over runs."""
    values: dict[str, object] = {}
    for key in KEYS:
        mean = sum(result.metrics[key] for result in results) / len(results)
        values[key] = round(mean, 1 if key == "rsum" else 3)
    return {"method": method, "width": width} | values


def compare(ours: Sequence[ImageTextResult], theirs: Sequence[ImageTextResult]) -> str:
    """Return the difference of rsum, its 95 % interval and p."""
    found = paired_bootstrap(ours, theirs)
    return f"{found.difference:+.1f} [{found.low:+.1f}, {found.high:+.1f}] p={found.p:.3f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, default=CAPTIONS)
    parser.add_argument("--runs", type=Path, default=Path("runs") / "real-captions")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="5 epochs and one seed: does it run")
    options = parser.parse_args()
    for part in (ASSETS / "dinov2", ASSETS / "minilm", options.captions):
        if not part.exists():
            parser.error(f"{part} is absent: this benchmark needs real weights and images, see CONTRIBUTING.md")
    seeds = range(1 if options.quick else options.seeds)
    first = read_config(options, negatives="batch", seed=0)
    cache = FeatureCache(first.cache_folder / "features")
    splits = read_samples(first.data).splits
    ridges = score_ridge(first, cache, splits)
    ours: dict[str, list[dict[int, ImageTextResult]]] = {}
    for negatives in ("batch", "corpus"):
        ours[negatives] = []
        for seed in seeds:
            config = read_config(options, negatives=negatives, seed=seed)
            ours[negatives].append(train_and_score(config, cache, splits["test"]))
            rsum = ours[negatives][-1][config.mrl.width].metrics["rsum"]
            print(f"{negatives}, seed {seed}: rsum {rsum:.1f}", flush=True)
    rows, differences = [], []
    for width in first.mrl.widths:
        by_method = {negatives: [result[width] for result in runs] for negatives, runs in ours.items()}
        rows += [make_row(name, width, [scored[width]]) for name, scored in ridges.items() if name != WHOLE]
        rows += [make_row(f"edgeglass, {name}", width, results) for name, results in by_method.items()]
        for negatives, results in by_method.items():
            against = {name: compare(results, [scored[width]] * len(results)) for name, scored in ridges.items()}
            differences.append(
                {"edgeglass": negatives, "width": width} | {f"− {name}": text for name, text in against.items()}
            )
        differences[-1]["− batch"] = compare(by_method["corpus"], by_method["batch"])
    report("edgeglass_real_captions", rows, note="test: 201 images, 1005 captions; means over seeds; rsum of 600")
    report("edgeglass_real_captions_differences", differences, note="rsum, 95 % interval over images and seeds")
