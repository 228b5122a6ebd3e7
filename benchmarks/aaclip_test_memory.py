"""`aaclip.evaluate` on a thousand images of 518 pixels: peak memory against that on a hundred; time of its metrics.

    uv run python benchmarks/aaclip_test_memory.py            # draws 1,000 images; some minutes
    uv run python benchmarks/aaclip_test_memory.py --quick    # 20 and 60 images: does it run

The tower is one narrow block with random weights on 37 × 37 patches, because everything around it is measured. Each
peak is above the resident memory after a warm-up, in a process of its own whose allocator returns freed memory at once.
Metrics are timed on the maps of a hundred images: the pixel curve against sklearn's `roc_auc_score` and
`average_precision_score`, and all seven metrics, with the sketches for the intervals, against sklearn's with the F1 of
`precision_recall_curve` and AUPRO at 200 thresholds.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _measure import PeakMemory, alternate, arm_in_own_process, report
from metrics_curves import aupro_with_regions_once
from PIL import Image, ImageDraw
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch.utils.data import DataLoader

from aaclip.config import Config
from aaclip.data import AnomalyDataset, Record, collate
from aaclip.detector.detector import Detector
from aaclip.models.backbone import make_model
from aaclip.scoring.evaluation import evaluate
from aaclip.scoring.metrics import ClassMetrics
from aaclip.scoring.score import read_test_records
from clip_common.backbones import load_clip
from clip_common.metrics import StreamingCurve

SIZE, WARM = 518, 16
SHAPE = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIZE, "patch_size": 14, "width": 64, "layers": 1, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
Maps = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Figures = dict[str, float]


def draw(folder: Path, *, images: int, classes: int) -> Path:
    """An MVTec tree: every other image has one or two dark ellipses and a mask of them."""
    generator = np.random.default_rng(0)
    for number in range(images):
        kind = folder / f"part{number % classes}"
        picture = Image.linear_gradient("L").resize((SIZE, SIZE)).rotate(int(generator.integers(360))).convert("RGB")
        mask = Image.new("L", (SIZE, SIZE))
        damaged = number // classes % 2 == 1
        for _ in range(generator.integers(1, 3) if damaged else 0):
            (x, y), (width, height) = generator.integers(SIZE - 80, size=2), generator.integers(8, 80, size=2)
            box = [x, y, x + width, y + height]
            ImageDraw.Draw(picture).ellipse(box, fill=tuple(generator.integers(90, size=3).tolist()))
            ImageDraw.Draw(mask).ellipse(box, fill=255)
        _save(picture, kind / "test" / ("hole" if damaged else "good") / f"{number:04d}.png")
        if damaged:
            _save(mask, kind / "ground_truth" / "hole" / f"{number:04d}_mask.png")
    return folder


def _save(picture: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, compress_level=1)


def detector() -> Detector:
    bundle = load_clip("one block", pretrained="random", model_config=SHAPE)
    torch.manual_seed(0)
    return Detector(make_model(bundle, Config()), Config())


def memory(root: Path, images: int) -> None:
    """Print the peak of a test of `images` images, after a few were tested."""
    own, records = detector(), read_test_records(root)
    chosen = sorted(records, key=lambda record: record.image.name)[:images]  # as many of each class, and of each label
    evaluate(own, chosen[:WARM])
    with PeakMemory() as peak:
        start = time.perf_counter()
        evaluate(own, chosen)
        seconds = time.perf_counter() - start
    print(json.dumps({"mib": peak.mib, "ms an image": 1000 * seconds / images}))


@torch.inference_mode()
def maps_of(records: list[Record]) -> Maps:
    """Return scores, labels, maps and masks of all images; defects are raised a little, so that curves rise."""
    own = detector()
    dataset = AnomalyDataset(records, preprocess=own.preprocess, size=SIZE, seed=0)
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for batch in DataLoader(dataset, batch_size=8, collate_fn=collate):
        text_BD2 = own.class_embedding("part").expand(len(batch.names), -1, -1)
        scores = own.scores(batch.images_B3HW, text_BD2)
        raised_BSS = scores.maps_BSS + scores.maps_BSS.std() * batch.masks_BHW
        found = (scores.logits_B, batch.anomalous_B, raised_BSS, batch.masks_BHW.bool())
        for column, value in zip(columns, found, strict=True):
            column.append(np.asarray(value))
    scores_N, anomalous_N, maps_NSS, masks_NSS = map(np.concatenate, columns)
    return scores_N, anomalous_N.astype(bool), maps_NSS, masks_NSS


def curve_ours(maps: Maps) -> Figures:
    curve = StreamingCurve()
    for map_SS, mask_SS in zip(*maps[2:], strict=True):
        curve.update(map_SS, mask_SS)
    found = curve.compute()
    return {"pixel/auroc": found.auroc, "pixel/ap": found.ap}


def curve_sklearn(maps: Maps) -> Figures:
    scores_P, labels_P = maps[2].ravel(), maps[3].ravel()
    return {
        "pixel/auroc": float(roc_auc_score(labels_P, scores_P)),
        "pixel/ap": float(average_precision_score(labels_P, scores_P)),
    }


def all_ours(maps: Maps) -> Figures:
    metrics = ClassMetrics()
    for row in range(0, len(maps[0]), 8):
        metrics.update(*(column[row : row + 8] for column in maps))
    return {name: value for name, value in metrics.compute().items() if value is not None}


def all_others(maps: Maps) -> Figures:
    figures = {"pixel/aupro": aupro_with_regions_once(maps[2], maps[3])["AUPRO"]}
    for name, scores, labels in (("image", maps[0], maps[1]), ("pixel", maps[2].ravel(), maps[3].ravel())):
        precision_K, recall_K, _ = precision_recall_curve(labels, scores)
        sums_K = np.maximum(precision_K + recall_K, 1e-12)
        figures[f"{name}/auroc"] = float(roc_auc_score(labels, scores))
        figures[f"{name}/ap"] = float(average_precision_score(labels, scores))
        figures[f"{name}/f1_max"] = float((2 * precision_K * recall_K / sums_K).max())
    return figures


TOLERANCE = {"auroc": 1e-4, "ap": 1e-3, "f1_max": 1e-3, "aupro": 1e-2}  # 200 thresholds are themselves that coarse


def compared(
    what: str, ours: Callable[[Maps], Figures], others: Callable[[Maps], Figures], maps: Maps, *, pairs: int
) -> dict[str, object]:
    found, expected = ours(maps), others(maps)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(found[name] - value) <= TOLERANCE[name.partition("/")[2]], f"{name}: {found[name]}, not {value}"
    timing = alternate(lambda: ours(maps), lambda: others(maps), pairs=pairs, warmup=0)
    images = len(maps[0])
    return {
        "what": what,
        "images": images,
        "ours ms an image": 1000 * timing.ours_s / images,
        "theirs ms an image": 1000 * timing.theirs_s / images,
        "times faster": 1 / timing.ratio,
        "AUROC differs by": abs(found["pixel/auroc"] - expected["pixel/auroc"]),
    }


def main() -> None:
    """Draw, measure memory, time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--arm", metavar="FOLDER", help="measure the peak of a test on it and print it as JSON")
    parser.add_argument("--images", type=int, default=100, help="of --arm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.arm:
        memory(Path(options.arm), options.images)
        return
    few, many, pairs = (20, 60, 1) if options.quick else (100, 1000, 3)
    with tempfile.TemporaryDirectory() as place:
        roots = {classes: draw(Path(place) / str(classes), images=many, classes=classes) for classes in (1, 10)}
        # else freed blocks stay resident, more or fewer of them by chance
        os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}
        rows: list[dict[str, object]] = []
        for classes, images in ((1, few), (1, many), (10, few), (10, many)):
            row: dict[str, object] = {"test of images": images, "classes": classes}
            rows.append(row | arm_in_own_process(__file__, str(roots[classes]), "--images", str(images)))
        records = sorted(read_test_records(roots[1]), key=lambda record: record.image.name)
        maps = maps_of(records[:few])
    report("aaclip_test_memory", rows, note=f"peak above a warm process, images of {SIZE} x {SIZE}; bar: constant")
    timed = [
        compared("pixel AUROC and AP / sklearn", curve_ours, curve_sklearn, maps, pairs=pairs),
        compared("all seven / sklearn, 200 thresholds", all_ours, all_others, maps, pairs=pairs),
    ]
    report("aaclip_test_metrics", timed, note=f"maps of {SIZE} x {SIZE}; bar: 20 times faster at AUROC within 1e-4")


if __name__ == "__main__":
    main()
