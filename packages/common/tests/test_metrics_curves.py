"""Threshold curves against hand-computed cases, sklearn, and a per-threshold reference for AUPRO."""

import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from clip_common.metrics import StreamingAUPRO, StreamingCurve

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
labelled = st.lists(st.tuples(floats, st.booleans()), min_size=2, max_size=60).filter(
    lambda rows: len({y for _, y in rows}) == 2
)


def curve_of(scores, labels, **options):
    curve = StreamingCurve(**options)
    curve.update(scores, labels)
    return curve.compute()


def detector(seed, size=20_000, share=0.05):
    """Scores of a fair detector, as probabilities."""
    generator = np.random.default_rng(seed)
    labels = generator.random(size) < share
    logits = generator.normal(size=size) + 1.5 * labels - 3
    return (1 / (1 + np.exp(-logits))).astype(np.float32), labels


def defects(seed, images=4, side=40):
    """Score maps and masks with one to three square defects in every image but the first."""
    generator = np.random.default_rng(seed)
    masks_BHW = np.zeros((images, side, side), dtype=bool)
    for mask_HW in masks_BHW[1:]:
        for top, left in generator.integers(side - 8, size=(generator.integers(1, 4), 2)):
            mask_HW[top : top + generator.integers(2, 8), left : left + generator.integers(2, 8)] = True
    return (generator.normal(size=masks_BHW.shape) + 1.5 * masks_BHW).astype(np.float32), masks_BHW


def aupro_of(maps, masks, **options):
    aupro = StreamingAUPRO(**options)
    aupro.update(maps, masks)
    return aupro.compute()


def aupro_by_thresholds(maps_BHW, masks_BHW, limit=0.3):
    """Mean overlap of the regions and false positive rate at every threshold, one after the other."""
    labels = [ndimage.label(mask, structure=np.ones((3, 3))) for mask in masks_BHW]
    regions = [maps[label == r] for maps, (label, n) in zip(maps_BHW, labels, strict=True) for r in range(1, n + 1)]
    thresholds = np.unique(maps_BHW)[::-1]
    overlap = np.array([0.0] + [np.mean([(region >= t).mean() for region in regions]) for t in thresholds])
    rate = np.array([0.0] + [(maps_BHW[~masks_BHW] >= t).mean() for t in thresholds])
    fine = np.append(rate[rate < limit], limit)
    return np.trapezoid(np.append(overlap[rate < limit], np.interp(limit, rate, overlap)), fine) / limit


def test_curve_by_hand():
    # pairs won: 0.9 beats both negatives, 0.4 beats one of them: AUROC 3/4; AP = 1/2 · 1/1 + 1/2 · 2/3
    result = curve_of([0.9, 0.6, 0.4, 0.1], [1, 0, 1, 0], exact=True)
    assert result.auroc == 3 / 4
    assert result.ap == pytest.approx(1 / 2 + 1 / 3)
    assert result.f1_max == pytest.approx(4 / 5)
    assert result.threshold == np.float32(0.4)


def test_all_scores_equal_is_chance():
    result = curve_of(np.zeros(10), [1, 0] * 5)
    assert (result.auroc, result.ap) == (0.5, 0.5)


@settings(deadline=None, max_examples=40)
@given(rows=labelled)
def test_exact_mode_equals_sklearn(rows):
    scores, labels = np.array([s for s, _ in rows], np.float32), np.array([y for _, y in rows])
    result = curve_of(scores, labels, exact=True)
    precision, recall, _ = precision_recall_curve(labels, scores)
    assert result.auroc == pytest.approx(roc_auc_score(labels, scores))
    assert result.ap == pytest.approx(average_precision_score(labels, scores))
    assert result.f1_max == pytest.approx(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


@pytest.mark.parametrize("transform", [lambda s: s, np.log, lambda s: -1 / s, lambda s: 1e-20 * s])
def test_histogram_is_close_to_sklearn_wherever_the_scores_lie(transform):
    scores, labels = detector(0)
    scores = transform(scores)
    result = curve_of(scores, labels)
    assert result.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-4)
    assert result.ap == pytest.approx(average_precision_score(labels, scores), abs=1e-3)
    assert result.f1_max == pytest.approx(curve_of(scores, labels, exact=True).f1_max, abs=1e-3)


@pytest.mark.parametrize("exact", [False, True])
def test_the_threshold_gives_the_f1_it_promises(exact):
    scores, labels = detector(1)
    result = curve_of(scores - 0.1, labels, exact=exact)
    said = scores - np.float32(0.1) >= result.threshold
    assert 2 * np.sum(said & labels) / (said.sum() + labels.sum()) == pytest.approx(result.f1_max)


@settings(deadline=None, max_examples=40)
@given(rows=labelled, cut=st.integers(0, 60), exact=st.booleans())
def test_merged_parts_equal_the_whole(rows, cut, exact):
    scores, labels = np.array([s for s, _ in rows], np.float32), np.array([y for _, y in rows])
    first, second = StreamingCurve(bits=12, exact=exact), StreamingCurve(bits=12, exact=exact)
    first.update(scores[:cut], labels[:cut])
    second.update(scores[cut:], labels[cut:])
    first.merge(pickle.loads(pickle.dumps(second)))  # as it comes from another process
    assert first.compute() == curve_of(scores, labels, bits=12, exact=exact)


@settings(deadline=None, max_examples=40)
@given(rows=labelled, seed=st.integers(0, 2**16), exact=st.booleans())
def test_the_order_of_scores_does_not_matter(rows, seed, exact):
    order = np.random.default_rng(seed).permutation(len(rows))
    scores, labels = np.array([s for s, _ in rows], np.float32), np.array([y for _, y in rows])
    shuffled = curve_of(scores[order], labels[order], bits=12, exact=exact)
    assert shuffled == curve_of(scores, labels, bits=12, exact=exact)


@settings(deadline=None, max_examples=40)
@given(rows=labelled)
def test_monotone_transforms_leave_the_exact_curve_alone(rows):
    scores, labels = np.array([s for s, _ in rows], np.float32), np.array([y for _, y in rows])
    places = np.unique(scores, return_inverse=True)[1].astype(np.float32)
    ranked, plain = (curve_of(values, labels, exact=True) for values in (places, scores))
    assert (ranked.auroc, ranked.ap, ranked.f1_max) == (plain.auroc, plain.ap, plain.f1_max)


def test_negative_zero_is_zero_and_infinities_have_their_place():
    result = curve_of([np.inf, 0.0, -0.0, -np.inf], [1, 1, 0, 0])
    assert result.auroc == (1 + 1 + 1 + 0.5) / 4
    assert curve_of([-np.inf, -np.inf], [0, 1]).threshold == -np.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_float_type_and_shape_are_taken(dtype):
    scores, labels = (torch.from_numpy(values).reshape(10, 40, 50) for values in detector(2))
    expected = curve_of(scores.to(dtype).float().numpy(), labels.numpy())
    assert curve_of(scores.to(dtype).requires_grad_(), labels.long()) == expected


def test_memory_does_not_grow_with_the_scores():
    curve = StreamingCurve()
    scores, labels = detector(3, size=100_000)
    curve.update(scores, labels)
    tracemalloc.start()
    for _ in range(20):
        curve.update(scores, labels)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2**16
    assert peak < 2**25


def crowded(size=40_000):
    """Probabilities of a confident detector: float64, most within 1e-6 of 1."""
    scores, labels = detector(4, size=size, share=0.2)
    return 1 - 1e-6 * (1 - scores.astype(np.float64)), labels


def test_probabilities_crowded_at_one_are_warned_of_and_exact_in_float64():
    scores, labels = crowded()
    truth = roc_auc_score(labels, scores), average_precision_score(labels, scores)
    exact = curve_of(scores, labels, exact=True)
    assert (exact.auroc, exact.ap) == pytest.approx(truth, abs=1e-12)
    assert (exact.shared, exact.auroc_error, exact.ap_error) == (0, 0, 0)
    said = scores >= exact.threshold
    assert 2 * np.sum(said & labels) / (said.sum() + labels.sum()) == pytest.approx(exact.f1_max)
    with pytest.warns(UserWarning, match="100% of the scores share a bin .* use exact=True or more bits") as warned:
        result = curve_of(scores, labels)
    assert len(warned) == 1
    assert abs(result.ap - truth[1]) > 0.06
    assert abs(result.auroc - truth[0]) <= result.auroc_error
    assert abs(result.ap - truth[1]) <= result.ap_error
    assert result.shared == 1


@settings(deadline=None, max_examples=60)
@given(rows=labelled)
def test_the_stated_errors_hold_the_truth_for_any_scores(rows):
    scores, labels = np.array([s for s, _ in rows], np.float32), np.array([y for _, y in rows])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coarse, exact = curve_of(scores, labels, bits=10), curve_of(scores, labels, exact=True)
    assert abs(coarse.auroc - exact.auroc) <= coarse.auroc_error + 1e-12
    assert abs(coarse.ap - exact.ap) <= coarse.ap_error + 1e-9


def test_ap_error_by_hand():
    # one bin, then p n n in the best order, n n p in the worst; tied, each of the three is as likely to be ahead
    scores, labels = np.float32([1.0, 1.0 + 2e-7, 1.0 + 4e-7]), [1, 0, 0]
    with pytest.warns(UserWarning, match="AP 0.3333 by 0.6667"):
        result = curve_of(scores, labels)
    assert (result.shared, result.auroc_error) == (1, 0.5)
    assert result.ap_error == pytest.approx(1 - 1 / 3)


@pytest.mark.parametrize("parts", [1, 2])
def test_scores_that_are_really_equal_are_no_reason_to_warn(parts):
    curves = [StreamingCurve() for _ in range(parts)]
    for curve in curves:
        curve.update([0.25, 0.25, 0.75, 0.75], [0, 1, 0, 1])
    for other in curves[1:]:
        curves[0].merge(other)
    result = curves[0].compute()
    assert (result.auroc, result.shared, result.ap_error) == (0.5, 0, 0)


def test_bins_that_differ_only_between_merged_parts_are_found():
    first, second = StreamingCurve(), StreamingCurve()
    first.update([0.5] * 10, [1] * 10)
    second.update([0.5 + 1e-7] * 10, [0] * 10)
    first.merge(second)
    with pytest.warns(UserWarning, match="share a bin"):
        assert first.compute().auroc_error == 0.5


def test_aupro_warns_of_shared_bins_too():
    maps, masks = defects(7)
    squeezed = 1 - 1e-6 / (1 + np.exp(maps.astype(np.float64)))
    assert aupro_of(squeezed, masks, exact=True) == pytest.approx(aupro_by_thresholds(maps, masks), abs=1e-9)
    with pytest.warns(UserWarning, match="so AUPRO may be off by"):
        aupro_of(squeezed, masks)


def test_aupro_by_hand():
    # two regions, of 1 and 3 pixels, and 4 defect-free pixels; at limit 0.5 two of these may be false alarms
    mask = np.array([[1, 0, 1, 1], [0, 0, 0, 1]])
    score = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.4, 0.3, 0.2]])
    # (rate, overlap): (0, 1/2) (1/4, 1/2) (1/4, 2/3) (1/4, 5/6) (1/2, 5/6): area 1/8 + 5/24, divided by 1/2
    assert aupro_of(score, mask, limit=0.5) == pytest.approx(2 * (1 / 8 + 5 / 24))


def test_regions_touch_at_corners_but_not_across_images():
    corner = np.array([[[1, 0], [0, 1]], [[0, 0], [0, 1]]])  # one region of two pixels, one of one
    score = np.array(
        [[[9.0, 1], [1, 2]], [[1, 1], [1, 1]]]
    )  # half of the first is all that is found without false alarms
    assert aupro_of(score, corner, limit=1e-6) == pytest.approx(1 / 2, abs=1e-5)


@pytest.mark.parametrize(("exact", "tolerance"), [(True, 1e-9), (False, 1e-4)])
@pytest.mark.parametrize("seed", range(3))
def test_aupro_equals_the_per_threshold_reference(seed, exact, tolerance):
    maps, masks = defects(seed)
    assert aupro_of(maps, masks, exact=exact) == pytest.approx(aupro_by_thresholds(maps, masks), abs=tolerance)


def test_aupro_of_merged_images_equals_that_of_the_batch():
    maps, masks = defects(5)
    parts = [StreamingAUPRO() for _ in maps]
    for part, score, mask in zip(parts, maps, masks, strict=True):
        part.update(torch.from_numpy(score), torch.from_numpy(mask))
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].compute() == pytest.approx(aupro_of(maps, masks), rel=1e-12)


def test_perfect_maps_have_an_aupro_of_one_and_flat_ones_that_of_chance():
    _, masks = defects(6)
    assert aupro_of(masks.astype(float), masks) == pytest.approx(1)
    assert aupro_of(np.ones(masks.shape), masks) == pytest.approx(0.15)  # overlap = rate: half of the limit


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StreamingCurve().compute(), "got 0 negatives and 0 positives"),
        (lambda: StreamingCurve(exact=True).compute(), "got 0 negatives and 0 positives"),
        (
            lambda: curve_of([0.1, 0.2], [0, 0]),
            "both classes; got 2 negatives and 0 positives: report them as not available",
        ),
        (lambda: curve_of([0.1, 0.2], [1, 1]), "both classes; got 0 negatives and 2 positives"),
        (lambda: curve_of([0.1, np.nan], [0, 1]), "scores must not be NaN; got 1 NaN among 2"),
        (lambda: curve_of([0.1, 0.2], [0, 2]), "labels must be 0 or 1; got 2"),
        (lambda: curve_of([0.1, 0.2], [0]), r"labels must have the shape of the scores, \(2,\); got \(1,\)"),
        (lambda: StreamingCurve(bits=32), "bits must be from 10 to 24; got 32: use exact=True"),
        (lambda: StreamingCurve(bits=16).merge(StreamingCurve()), "same resolution add up; got 16 and 20 bits"),
        (lambda: StreamingAUPRO().compute(), "got 0 defect-free pixels and 0 regions"),
        (
            lambda: aupro_of(np.ones((2, 2)), np.zeros((2, 2))),
            "got 4 defect-free pixels and 0 regions: report it as not",
        ),
        (lambda: aupro_of(np.ones((2, 2)), np.ones((2, 2))), "got 0 defect-free pixels and 1 regions"),
        (lambda: aupro_of(np.ones(4), np.ones(4)), r"must be \(H, W\) or \(B, H, W\); got the shape \(4,\)"),
        (lambda: StreamingAUPRO(limit=0), r"limit must be a false positive rate in \(0, 1\]; got 0"),
    ],
)
def test_bad_input_says_what_was_given_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_refused_update_leaves_the_curve_as_it_was():
    curve = StreamingCurve()
    curve.update([0.1, 0.9], [0, 1])
    before = curve.compute()
    with pytest.raises(ValueError):
        curve.update([0.9] * 400_000 + [np.nan], [0] * 400_001)
    assert curve.compute() == before
