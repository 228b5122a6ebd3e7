"""Metrics of a class against sklearn and hand-computed cases; intervals against a bootstrap of whole score maps."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from aaclip.scoring.bootstrap import draw_images
from aaclip.scoring.metrics import METRICS, ClassMetrics, Mean, average_classes
from aaclip.scoring.sketches import POINTS, ImageSketch
from clip_common.metrics import StreamingAUPRO

SIDE = 24


def images(seed, *, normal=6, anomalous=6, side=SIDE, sharp=1.0):
    """Image scores, labels, score maps and masks of a fair detector; one or two square defects each."""
    generator = np.random.default_rng(seed)
    labels_B = np.arange(normal + anomalous) >= normal
    masks_BHW = np.zeros((len(labels_B), side, side), dtype=bool)
    for mask_HW in masks_BHW[normal:]:
        for top, left in generator.integers(side - 6, size=(generator.integers(1, 3), 2)):
            mask_HW[top : top + generator.integers(2, 6), left : left + generator.integers(2, 6)] = True
    maps_BHW = (generator.normal(size=masks_BHW.shape) + sharp * masks_BHW).astype(np.float32)
    maps_BHW += generator.normal(size=(len(labels_B), 1, 1)).astype(np.float32)  # images differ as a whole
    return generator.normal(size=len(labels_B)) + labels_B, labels_B, maps_BHW, masks_BHW


def of(scores, labels, maps=None, masks=None, **options):
    metrics = ClassMetrics(**options)
    metrics.update(scores, labels, maps, masks)
    return metrics


def by_sklearn(scores, labels):
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1_max = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    return [roc_auc_score(labels, scores), average_precision_score(labels, scores), f1_max]


def test_image_metrics_by_hand():
    # 0.9 beats both normal images, 0.4 one of them: AUROC 3/4, AP 1/2 · 1 + 1/2 · 2/3, F1 4/5 where both are found
    found = of([0.9, 0.6, 0.4, 0.1], [1, 0, 1, 0]).compute()
    assert list(found) == list(METRICS)
    assert list(found.values()) == [0.75, pytest.approx(5 / 6), pytest.approx(0.8), None, None, None, None]


def test_pixel_metrics_by_hand():
    # one defect of two pixels at 0.8 and 0.3 among six normal ones, one of them at 0.5: 11 of 12 pairs are right;
    # overlap rises to 1/2 at no false alarm and to 1 at 1/6, and stays there until 0.3
    map_HW = [[0.8, 0.3, 0.5, 0.0], [0.2, 0.1, 0.0, 0.1]]
    mask_HW = [[1, 1, 0, 0], [0, 0, 0, 0]]
    found = of([0.8], [1], [map_HW], [mask_HW], exact=True).compute()
    assert found["image/auroc"] is None
    assert found["pixel/auroc"] == pytest.approx(11 / 12)
    assert found["pixel/ap"] == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)
    assert found["pixel/f1_max"] == pytest.approx(4 / 5)
    assert found["pixel/aupro"] == pytest.approx((1 / 6 * 1 / 2 + (0.3 - 1 / 6)) / 0.3)


@pytest.mark.parametrize("exact", [True, False])
def test_batches_of_tensors_equal_sklearn_over_all_of_them(exact):
    scores, labels, maps, masks = images(0)
    metrics = ClassMetrics(exact=exact)
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        batch = (torch.from_numpy(values[part]) for values in (scores, labels.astype(np.int64), maps, masks))
        metrics.update(*batch)
    found = list(metrics.compute().values())
    assert found[:3] == pytest.approx(by_sklearn(scores.astype(np.float32), labels))
    assert found[3:6] == pytest.approx(by_sklearn(maps.ravel(), masks.ravel()), abs=1e-6 if exact else 1e-3)
    aupro = StreamingAUPRO(exact=True)
    aupro.update(maps, masks)
    assert found[6] == pytest.approx(aupro.compute(), abs=1e-6 if exact else 1e-3)


@pytest.mark.parametrize(("normal", "anomalous"), [(0, 4), (4, 0), (0, 0)])
def test_what_does_not_exist_is_none_and_has_no_interval(normal, anomalous):
    metrics = of(*images(1, normal=normal, anomalous=anomalous))
    existing = {name for name, value in metrics.compute().items() if value is not None}
    # a set of polyps: no normal image, yet normal pixels beside the polyps
    assert existing == ({name for name in METRICS if name.startswith("pixel")} if anomalous else set())
    assert metrics.intervals(samples=50).keys() == existing


def test_sets_without_masks_and_without_interest_in_pixels():
    scores, labels, maps, masks = images(2)
    without = [of(scores, labels), of(scores, labels, maps), of(scores, labels, maps, masks, pixel=False)]
    for metrics in without:
        assert metrics.compute()["pixel/auroc"] is None
        assert set(metrics.intervals(samples=50)) == set(METRICS[:3])


def test_an_anomalous_image_with_an_empty_mask_counts_as_an_image():
    scores, labels, maps, masks = images(3, normal=2, anomalous=2)
    masks[3] = False
    metrics = of(scores, labels, maps, masks)
    drawn = metrics.scores().resample(samples=400)
    assert np.isnan(drawn["pixel/auroc"]).mean() == pytest.approx(1 / 4, abs=0.08)  # both draws are the empty one
    assert np.isnan(drawn["pixel/auroc"]).tolist() == np.isnan(drawn["pixel/aupro"]).tolist()
    assert np.isfinite(list(metrics.intervals(samples=400).values())).all()


def test_mistakes_are_told_and_leave_nothing_behind():
    scores, labels, maps, masks = images(4)
    metrics = of(scores, labels, maps, masks)
    before = metrics.compute()
    bad = [
        (([np.nan, 1], [0, 1]), "NaN"),
        (([0.1, 1], [0, 2]), "0 or 1"),
        (([0.1, 1], [0, 1, 1]), "shape"),
        ((scores, labels, maps[:3], masks[:3]), "for each of 12 scores"),
        ((scores, labels, maps, masks[:, :3]), "shape of the scores"),
        ((scores, labels, maps, 255 * masks.astype(np.uint8)), "0 or 1"),
        ((scores, labels, np.where(masks, np.nan, maps), masks), "NaN"),
        ((scores, labels, None, masks), "shape of the scores"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            metrics.update(*arguments)
    assert metrics.compute() == before


# intervals


def bootstrap(scores, labels, maps, masks, *, weights_SN):
    """The values of METRICS on each resample, from all its images and pixels."""
    for weights_N in weights_SN:
        rows = np.repeat(np.arange(len(scores)), weights_N)
        yield list(of(scores[rows], labels[rows], maps[rows], masks[rows], exact=True).compute().values())


def draws_of(labels, *, samples, seed):
    return np.concatenate(list(draw_images(labels, samples=samples, seed=seed, width=1)))


def test_resamples_equal_those_of_whole_maps():
    scores, labels, maps, masks = images(5, side=12)  # fewer pixels than points, in fewer steps than scores
    scores, maps = np.round(scores, 1), np.round(maps, 1)  # ties in plenty
    drawn = of(scores, labels, maps, masks, exact=True).scores().resample(samples=30, seed=3)
    expected = np.array(list(bootstrap(scores, labels, maps, masks, weights_SN=draws_of(labels, samples=30, seed=3))))
    assert np.stack([drawn[name] for name in METRICS], axis=1) == pytest.approx(expected, abs=1e-6)
    assert expected.std(axis=0).min() > 0.005


def test_sketches_follow_whole_maps_closely():
    scores, labels, maps, masks = images(6, side=64, sharp=2.0)
    drawn = of(scores, labels, maps, masks).scores().resample(samples=40, seed=1)
    expected = np.array(list(bootstrap(scores, labels, maps, masks, weights_SN=draws_of(labels, samples=40, seed=1))))
    found = np.stack([drawn[name] for name in METRICS], axis=1)
    assert np.abs(found - expected).max(axis=0) == pytest.approx(np.zeros(7), abs=4e-3)
    assert expected[:, 3:].std(axis=0).min() > 0.008  # the spread is larger than what the sketch misses


def test_what_sketches_miss_of_the_value_is_added():
    scores, labels, maps, masks = images(6, side=64, sharp=4.0)
    maps = 1 / (1 + np.exp(-maps))  # scores crowd below 1, where the bins of a sketch are coarse
    drawn = of(scores, labels, maps, masks).scores().resample(samples=40, seed=1)["pixel/ap"]
    expected = np.array(list(bootstrap(scores, labels, maps, masks, weights_SN=draws_of(labels, samples=40, seed=1))))
    assert np.abs(drawn - expected[:, METRICS.index("pixel/ap")]).mean() < 3.5e-3  # 8e-3 if it were not


def test_both_kinds_of_images_are_drawn_in_their_numbers_and_not_together():
    labels = np.array([True, False, True, False, False, True])
    weights_SN = draws_of(labels, samples=4000, seed=0)
    assert set(weights_SN[:, labels].sum(1)) == set(weights_SN[:, ~labels].sum(1)) == {3}
    assert weights_SN.mean(0) == pytest.approx(np.ones(6), abs=0.06)
    assert np.corrcoef(weights_SN.T)[:3, 3:][labels[:3]][:, ~labels[3:]] == pytest.approx(0, abs=0.06)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    # scores of one normal and one anomalous image: unit normals one apart, so the AUROC is Φ(1/√2) = 0.760
    covered = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        labels = np.arange(80) % 2
        low, high = of(generator.normal(size=80) + labels, labels).intervals(samples=200)["image/auroc"]
        covered += low <= 0.760 <= high
    assert 87 <= covered <= 99


def test_intervals_hold_the_value_and_depend_on_the_seed_alone():
    metrics = of(*images(7))
    intervals = metrics.intervals(samples=300)
    assert intervals == metrics.intervals(samples=300)
    assert intervals != metrics.intervals(samples=300, seed=1)
    for name, value in metrics.compute().items():
        low, high = intervals[name]
        assert 0 <= low < high <= 1
        assert low <= value <= high


def test_a_perfect_detector_has_a_perfect_interval():
    _, labels, _, masks = images(8)
    intervals = of(labels, labels, masks.astype(np.float32), masks).intervals(samples=100)
    assert all(interval == pytest.approx((1, 1)) for name, interval in intervals.items() if name != "pixel/aupro")
    assert intervals["pixel/aupro"][1] <= 1


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-12, 1.0, 300.0]),
    shift=st.sampled_from([0.0, -50.0]),
    side=st.sampled_from([3, 40]),
)
def test_a_sketch_is_small_and_loses_no_pixel(seed, scale, shift, side):
    generator = np.random.default_rng(seed)
    map_HW = (scale * (generator.normal(size=(side, side)) + shift)).astype(np.float32)
    mask_HW = generator.random((side, side)) < 0.2
    sketch = ImageSketch.of(map_HW, mask_HW, anomalous=True)
    assert len(sketch.scores_K) <= POINTS + 1
    assert (np.diff(sketch.scores_K) < 0).all()
    assert (sketch.positives, sketch.negatives) == (mask_HW.sum(), (~mask_HW).sum())
    assert sketch.mass_K3.nbytes + sketch.scores_K.nbytes <= 8300
    regions = label(mask_HW, structure=np.ones((3, 3)))[1]
    assert sketch.mass_K3[:, 2].sum() == pytest.approx(regions, rel=1e-4)


def test_memory_is_that_of_the_sketches():
    _, _, maps, masks = images(9, side=256)
    metrics = of(np.arange(12), np.arange(12) % 2, maps, masks)
    tracemalloc.start()
    for _ in range(4):
        metrics.update(np.arange(12), np.arange(12) % 2, maps, masks)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 48 * 9500  # an image of 256 × 256 pixels is 262,144 bytes of scores


def test_image_scores_are_told_apart_where_they_crowd():
    scores = 0.5 + 1e-6 * np.arange(40)
    assert of(scores, np.arange(40) >= 20).compute()["image/auroc"] == 1


# the mean


def test_the_mean_is_over_the_classes_that_have_the_metric():
    classes = {
        "nut": {"image/auroc": 0.5, "pixel/auroc": 0.9, "pixel/aupro": None},
        "polyp": {"image/auroc": None, "pixel/auroc": 0.7, "pixel/aupro": None},
    }
    assert average_classes(classes) == {
        "image/auroc": Mean(0.5, 1),
        "pixel/auroc": Mean(pytest.approx(0.8), 2),
        "pixel/aupro": Mean(None, 0),
    }
