"""StreamingCurve against sklearn on 30 megapixels, and StreamingAUPRO against trying one threshold after another.

    uv run python benchmarks/metrics_curves.py            # 30 Mpx; 60 maps of 256 × 256 and 200 thresholds
    uv run python benchmarks/metrics_curves.py --quick    # 3 Mpx; 15 maps

sklearn: roc_auc_score and average_precision_score. The per-threshold method is the one that anomaly-detection code
shares: 200 even thresholds, and at each of them the regions of every mask, their overlaps and the false positives;
"regions once" is a kinder form of it, which finds the regions and the defect-free pixels beforehand.
Peak memory above the 30 Mpx is taken in a process of its own.
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
from _measure import PeakMemory, alternate, arm_in_own_process, report
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from clip_common.metrics import StreamingAUPRO, StreamingCurve

LIMIT = 0.3
Figures = dict[str, float]


def pixels(megapixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a fair detector as probabilities, 2 % of pixels defective."""
    generator = np.random.default_rng(0)
    labels = generator.random(megapixels * 1_000_000) < 0.02
    logits = generator.standard_normal(len(labels), dtype=np.float32) + 2 * labels.astype(np.float32) - 3
    return 1 / (1 + np.exp(-logits)), labels


def maps(images: int, side: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Smooth score maps with up to four elliptic defects each."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    masks = np.zeros((images, side, side), dtype=bool)
    for mask in masks:
        for _ in range(generator.integers(5)):
            (row, column), (height, width) = generator.integers(side, size=2), generator.integers(3, 20, size=2)
            mask |= ((y - row) / height) ** 2 + ((x - column) / width) ** 2 < 1
    noise = ndimage.gaussian_filter(generator.standard_normal(masks.shape), (0, 3, 3)) * 10
    return (1 / (1 + np.exp(-(noise + 1.5 * masks - 2)))).astype(np.float32), masks


def curve_ours(scores: np.ndarray, labels: np.ndarray) -> Figures:
    curve = StreamingCurve()
    curve.update(scores, labels)
    result = curve.compute()
    return {"AUROC": result.auroc, "AP": result.ap}


def curve_sklearn(scores: np.ndarray, labels: np.ndarray) -> Figures:
    return {"AUROC": float(roc_auc_score(labels, scores)), "AP": float(average_precision_score(labels, scores))}


def aupro_ours(scores: np.ndarray, masks: np.ndarray) -> Figures:
    aupro = StreamingAUPRO(limit=LIMIT)
    for score, mask in zip(scores, masks, strict=True):
        aupro.update(score, mask)
    return {"AUPRO": aupro.compute()}


def aupro_by_thresholds(scores: np.ndarray, masks: np.ndarray) -> Figures:
    rates, overlaps = [], []
    for threshold in np.linspace(scores.max(), scores.min(), 200):
        found = scores >= threshold
        overlap = []
        for hits, mask in zip(found, masks, strict=True):
            regions = ndimage.label(mask, structure=np.ones((3, 3)))[0]
            for region, box in enumerate(ndimage.find_objects(regions), start=1):
                overlap.append(hits[box][regions[box] == region].mean())
        overlaps.append(np.mean(overlap))
        rates.append(np.logical_and(found, ~masks).sum() / (~masks).sum())
    return _area(rates, overlaps)


def aupro_with_regions_once(scores: np.ndarray, masks: np.ndarray) -> Figures:
    regions = []
    for score, mask in zip(scores, masks, strict=True):
        label, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [score[label == region] for region in range(1, count + 1)]
    free = scores[~masks]
    rates, overlaps = [], []
    for threshold in np.linspace(scores.max(), scores.min(), 200):
        rates.append((free >= threshold).mean())
        overlaps.append(np.mean([(region >= threshold).mean() for region in regions]))
    return _area(rates, overlaps)


def _area(rates: list[float], overlaps: list[float]) -> Figures:
    inside = [rate for rate in rates if rate < LIMIT]
    at_limit = np.interp(LIMIT, rates, overlaps)
    area = np.trapezoid([0.0, *overlaps[: len(inside)], at_limit], [0.0, *inside, LIMIT])
    return {"AUPRO": float(area / LIMIT)}


ARMS: dict[str, Callable[[np.ndarray, np.ndarray], Figures]] = {
    "StreamingCurve": curve_ours,
    "sklearn": curve_sklearn,
    "StreamingAUPRO": aupro_ours,
    "200 thresholds": aupro_by_thresholds,
    "200 thresholds, regions once": aupro_with_regions_once,
}
TOLERANCE = {"AUROC": 1e-4, "AP": 1e-3, "AUPRO": 1e-2}  # 200 thresholds are themselves that coarse


def data_of(arm: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    return pixels(size) if arm in ("StreamingCurve", "sklearn") else maps(size)


def compare(ours: str, theirs: str, size: int, *, pairs: int, what: str) -> dict[str, object]:
    data = data_of(ours, size)
    found, expected = ARMS[ours](*data), ARMS[theirs](*data)
    for name, value in expected.items():
        assert abs(found[name] - value) < TOLERANCE[name], f"{name}: ours {found[name]}, theirs {value}"
    timing = alternate(lambda: ARMS[ours](*data), lambda: ARMS[theirs](*data), pairs=pairs, warmup=0)
    row: dict[str, object] = {
        "ours": ours,
        "against": f"{theirs}, {what}",
        "ours s": timing.ours_s,
        "theirs s": timing.theirs_s,
        "times faster": 1 / timing.ratio,
        "largest difference": max(abs(found[name] - value) for name, value in expected.items()),
    }
    if ours == "StreamingCurve":
        for name, arm in (("ours MiB", ours), ("theirs MiB", theirs)):
            row[name] = arm_in_own_process(__file__, arm, "--size", str(size))["mib"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the pixels, a quarter of the maps")
    parser.add_argument("--arm", choices=ARMS, help="measure the peak memory of one arm and print it as JSON")
    parser.add_argument("--size", type=int, default=1, help="megapixels, or maps, of --arm")
    options = parser.parse_args()
    if options.arm:
        ARMS[options.arm](*data_of(options.arm, 2))
        data = data_of(options.arm, options.size)
        with PeakMemory() as memory:
            ARMS[options.arm](*data)
        print(json.dumps({"mib": memory.mib}))
        return
    megapixels, images = (3, 15) if options.quick else (30, 60)
    maps_pairs = 3 if options.quick else 7
    rows = [
        compare("StreamingCurve", "sklearn", megapixels, pairs=3, what=f"{megapixels} Mpx"),
        *(
            compare("StreamingAUPRO", arm, images, pairs=maps_pairs, what=f"{images} maps")
            for arm in ("200 thresholds", "200 thresholds, regions once")
        ),
    ]
    report("metrics_curves", rows, note="bars: 20 times faster each; AUROC within 1e-4, AP within 1e-3 of sklearn's")


if __name__ == "__main__":
    main()
