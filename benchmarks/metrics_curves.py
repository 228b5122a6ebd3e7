"""StreamingCurve against sklearn on 30 megapixels, and StreamingAUPRO against a loop over thresholds.

    uv run python benchmarks/metrics_curves.py            # 30 Mpx; 60 maps of 256 × 256 and 200 thresholds
    uv run python benchmarks/metrics_curves.py --quick    # 3 Mpx; 15 maps

sklearn: roc_auc_score and average_precision_score. The loop is common in anomaly-detection code: at each of 200 evenly
spaced thresholds it finds the regions of every mask, their overlaps and the false positives. "regions once" is a faster
variant that finds the regions and the defect-free pixels before the loop. Peak memory of the curves is measured above
the pixels, each arm in its own process.
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


def draw_pixels(megapixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities from a moderately good detector, and labels with 2 % of pixels defective."""
    generator = np.random.default_rng(0)
    labels = generator.random(megapixels * 1_000_000) < 0.02
    logits = generator.standard_normal(len(labels), dtype=np.float32) + 2 * labels.astype(np.float32) - 3
    return 1 / (1 + np.exp(-logits)), labels


def draw_maps(images: int, side: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Return smooth score maps and masks of up to four elliptic defects each, both (images, side, side)."""
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
    """Compute AUPRO at 200 thresholds, finding the regions again at each."""
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
    return _integrate(rates, overlaps)


def aupro_with_regions_once(scores: np.ndarray, masks: np.ndarray) -> Figures:
    """Compute AUPRO at 200 thresholds from regions found once."""
    regions = []
    for score, mask in zip(scores, masks, strict=True):
        label, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [score[label == region] for region in range(1, count + 1)]
    free = scores[~masks]
    rates, overlaps = [], []
    for threshold in np.linspace(scores.max(), scores.min(), 200):
        rates.append((free >= threshold).mean())
        overlaps.append(np.mean([(region >= threshold).mean() for region in regions]))
    return _integrate(rates, overlaps)


def _integrate(rates: list[float], overlaps: list[float]) -> Figures:
    """Return the area under overlap against false-positive rate up to LIMIT, divided by LIMIT."""
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
TOLERANCE = {"AUROC": 1e-4, "AP": 1e-3, "AUPRO": 1e-2}  # AUPRO: the spacing of 200 thresholds


def draw_data(arm: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and labels of an arm: `size` megapixels for a curve, `size` maps for AUPRO."""
    return draw_pixels(size) if arm in ("StreamingCurve", "sklearn") else draw_maps(size)


def compare(ours: str, theirs: str, size: int, *, pairs: int, unit: str) -> dict[str, object]:
    """Return a row of the table, after asserting that the results of both arms agree within TOLERANCE."""
    data = draw_data(ours, size)
    result, expected = ARMS[ours](*data), ARMS[theirs](*data)
    for name, value in expected.items():
        assert abs(result[name] - value) < TOLERANCE[name], f"{name}: ours {result[name]}, theirs {value}"
    timing = alternate(lambda: ARMS[ours](*data), lambda: ARMS[theirs](*data), pairs=pairs, warmup=0)
    row: dict[str, object] = {
        "ours": ours,
        "against": f"{theirs}, {size} {unit}",
        "ours s": timing.ours_s,
        "theirs s": timing.theirs_s,
        "times faster": 1 / timing.ratio,
        "largest difference": max(abs(result[name] - value) for name, value in expected.items()),
    }
    if ours == "StreamingCurve":
        for name, arm in (("ours MiB", ours), ("theirs MiB", theirs)):
            row[name] = arm_in_own_process(__file__, arm, "--size", str(size))["mib"]
    return row


def main() -> None:
    """Compare the curves and AUPRO, or measure the memory of one arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the pixels, a quarter of the maps")
    parser.add_argument("--arm", choices=ARMS, help="measure the peak memory of one arm and print it as JSON")
    parser.add_argument("--size", type=int, default=1, help="size of the data for --arm: megapixels, or maps")
    options = parser.parse_args()
    if options.arm:
        ARMS[options.arm](*draw_data(options.arm, 2))
        data = draw_data(options.arm, options.size)
        with PeakMemory() as memory:
            ARMS[options.arm](*data)
        print(json.dumps({"mib": memory.mib}))
        return
    megapixels, images = (3, 15) if options.quick else (30, 60)
    maps_pairs = 3 if options.quick else 7
    rows = [
        compare("StreamingCurve", "sklearn", megapixels, pairs=3, unit="Mpx"),
        *(
            compare("StreamingAUPRO", arm, images, pairs=maps_pairs, unit="maps")
            for arm in ("200 thresholds", "200 thresholds, regions once")
        ),
    ]
    report(
        "metrics_curves", rows, note="targets: each 20 times faster; AUROC within 1e-4 and AP within 1e-3 of sklearn"
    )


if __name__ == "__main__":
    main()
