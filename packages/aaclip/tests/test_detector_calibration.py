"""Thresholds by hand, by their definition and by what they promise; the fitted score and the top of a map."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from aaclip.detector.calibration import (
    Logistic,
    Threshold,
    best_f1,
    compute_relative_scores,
    conformal,
    normal_quantile,
    top_mean,
)

tied = st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=30)
any_scores = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=30)
rates = st.sampled_from([0.01, 0.05, 0.07, 0.1, 0.29, 0.3, 0.5, 0.9])


def share(scores, threshold):
    return np.mean(np.asarray(scores) >= threshold.value)


def test_quantile_by_hand():
    scores = np.arange(1, 101) / 128  # exact in binary
    threshold = normal_quantile(scores, 0.05)
    assert threshold == Threshold(pytest.approx(95 / 128 + 1e-5, abs=1e-7), "normal_quantile", 0.05, 100)
    assert share(scores, threshold) == 0.05
    assert share(scores, normal_quantile(scores, 0.29)) == 0.29  # 0.29 · 100 is below 29 in floats
    assert share(scores, normal_quantile(scores, 0.059)) == 0.05
    assert share(scores, normal_quantile(scores, 0.0)) == 0


def test_ties_lower_the_rate():
    scores = [0.1, 0.5, 0.5, 0.5]
    assert share(scores, normal_quantile(scores, 0.5)) == 0
    assert share(scores, normal_quantile(scores, 0.75)) == 0.75


@given(scores=st.one_of(tied, any_scores), rate=rates)
def test_quantile_keeps_the_rate_and_lies_just_above_the_score_that_would_break_it(scores, rate):
    scores = np.array(scores, np.float32)
    value = np.float32(normal_quantile(scores, rate).value)
    assert np.sum(scores >= value) <= round(rate * len(scores), 6)
    highest = scores[scores < value].max()
    assert np.sum(scores >= highest) > round(rate * len(scores), 6)
    with np.errstate(over="ignore"):
        assert value <= max(np.nextafter(highest, np.float32(np.inf)), np.float32(float(highest) + 1e-5))


# torch takes the subnormal numbers of 32 bits for 0
normals = st.one_of(st.just(0.0), st.floats(2.0**-126, 1))


@given(scores=st.lists(normals, min_size=1, max_size=30), rate=rates)
def test_verdicts_are_the_same_in_32_and_64_bits(scores, rate):
    doubles, labels = np.array(scores), np.arange(len(scores)) % 2
    thresholds = [normal_quantile(doubles, rate)] + ([best_f1(doubles, labels)] if len(scores) > 1 else [])
    for threshold in thresholds:
        singles = torch.tensor(scores, dtype=torch.float32) >= threshold.value
        assert (doubles >= threshold.value).tolist() == singles.tolist()


@given(scores=st.one_of(tied, any_scores).filter(lambda scores: len(scores) > 1), rate=rates)
def test_conformal_keeps_its_promise_over_who_comes_last(scores, rate):
    """Exchangeable scores: each of N+1 is as likely the new one, so the share of those flagged is the probability."""
    if len(scores) < 1 / rate - 1e-9:
        return
    flagged = [scores[last] >= conformal(scores[:last] + scores[last + 1 :], rate).value for last in range(len(scores))]
    assert np.mean(flagged) <= rate + 1e-9
    if np.diff(np.sort(scores)).min() > 2e-5:  # no slack but that of whole numbers
        assert sum(flagged) == math.floor(rate * len(scores) + 1e-9)


def test_a_score_that_changes_in_its_last_digits_keeps_its_verdict():
    scores = np.arange(1, 11) / 16
    for threshold in (normal_quantile(scores, 0.0), normal_quantile(scores, 0.2), conformal(scores, 0.2)):
        for change in (-2e-6, 2e-6):
            assert ((scores + change) >= threshold.value).tolist() == (scores >= threshold.value).tolist()
    near = [0.5, 0.5 + 4e-6]  # halfway between the two
    assert normal_quantile(near, 0.5).value == pytest.approx(0.5 + 2e-6, abs=1e-7)


def test_conformal_by_hand_and_what_it_needs():
    scores = np.arange(99) / 128
    threshold = conformal(scores, 0.01)
    assert threshold == Threshold(pytest.approx(98 / 128 + 1e-5, abs=1e-7), "conformal", 0.01, 99)
    assert share(scores, conformal(scores, 0.05)) == 4 / 99  # one fewer than 5 of 100: the new one may be the fifth
    with pytest.raises(ValueError, match=r"target_fpr=0.01: 98 normal images cannot promise it, 99 can"):
        conformal(scores[:98], 0.01)
    with pytest.raises(ValueError, match="3 can"):
        conformal([0.3], 0.3)  # 1/0.3 − 1 is 2.33: two images give 0.9 of an alarm


def test_best_f1_by_hand():
    # at 0.4 both anomalous and one normal image are found: 4/5; the threshold lies between 0.4 and 0.1
    threshold = best_f1([0.9, 0.6, 0.4, 0.1], [1, 0, 1, 0])
    assert threshold.value == pytest.approx(0.25)
    assert (threshold.method, threshold.target_fpr, threshold.images) == ("best_f1", None, 4)
    assert best_f1([0.9, 0.5], [1, 0]).value == pytest.approx(0.7)
    lowest = best_f1([0.3, 0.1], [0, 1]).value  # all are said to be anomalous: just below the lowest
    assert 0.0999 < lowest < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: normal_quantile([], 0.1), "got none"),
        (lambda: conformal([], 0.1), "got none"),
        (lambda: normal_quantile([0.1, math.nan], 0.1), "NaN"),
        (lambda: normal_quantile([0.1], 1.0), r"target_fpr=1.0: expected"),
        (lambda: normal_quantile([0.1], -0.1), r"target_fpr=-0.1: expected"),
        (lambda: conformal([0.1], 0.0), r"target_fpr=0.0: expected"),
        (lambda: best_f1([0.1, 0.2], [1, 1]), "both classes"),
        (lambda: best_f1([0.1, 0.2], [1]), "shape"),
        (lambda: top_mean(torch.zeros(1, 2, 2), share=0.0), r"share=0.0"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(ValueError, match=message) as told:
        call()
    assert "\n" not in str(told.value)


def test_both_survive_json():
    for kept in (normal_quantile([0.1, 0.7], 0.5), Threshold(0.5, "given"), Logistic(1.5, 0.0, -0.25, images=8)):
        assert type(kept).from_dict(json.loads(json.dumps(kept.to_dict()))) == kept


# the score


def evidence(seed, *, cls=1.5, top=1.5, normal=60, anomalous=20):
    """Both inputs on scales of their own, with defects `cls` and `top` deviations higher."""
    generator = np.random.default_rng(seed)
    labels = np.arange(normal + anomalous) >= normal
    noise_2N = generator.normal(size=(2, len(labels)))
    return 0.02 * (noise_2N[0] + cls * labels), 5 + 8 * (noise_2N[1] + top * labels), labels


def test_the_score_by_hand():
    score = Logistic(a=2.0, b=0.5, c=-1.0)
    cls_B, top_B = torch.tensor([0.5, 1.0]), torch.tensor([0.0, 2.0])
    assert score(cls_B, top_B).tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2))])
    assert score.logits(torch.tensor(0.5), torch.tensor(2.0)).item() == pytest.approx(1.0)
    far_B, nothing_B = torch.tensor([30.0, 40.0]), torch.zeros(2)
    assert score(far_B, nothing_B).tolist() == [1, 1]  # where scores are one, logits are not
    assert score.logits(far_B, nothing_B).tolist() == [59, 79]


def test_the_fit_is_sklearns_on_scaled_inputs():
    cls, top, labels = evidence(0)
    fitted = Logistic.fit(cls, torch.from_numpy(top), labels.astype(int))
    inputs = StandardScaler().fit_transform(np.stack([cls, top], axis=1))
    expected = LogisticRegression(class_weight="balanced").fit(inputs, labels).predict_proba(inputs)[:, 1]
    assert fitted(torch.from_numpy(cls), torch.from_numpy(top)).numpy() == pytest.approx(expected, abs=1e-4)
    assert fitted.images == 80
    assert fitted.a > 0 < fitted.b
    scores = fitted(torch.from_numpy(cls), torch.from_numpy(top)).numpy()
    assert scores[labels].mean() - 0.5 == pytest.approx(0.5 - scores[~labels].mean(), abs=0.03)  # 60 against 20


@pytest.mark.parametrize(("cls", "top", "kept"), [(-1.0, 2.0, "b"), (2.0, -1.0, "a")])
def test_an_input_that_points_the_wrong_way_is_left_out(cls, top, kept):
    fitted = Logistic.fit(*evidence(1, cls=cls, top=top))
    weights = {"a": fitted.a, "b": fitted.b}
    assert weights.pop(kept) > 0
    assert list(weights.values()) == [0]


def test_of_two_that_only_rise_alone_the_better_one_is_taken():
    """cls and top each rise with defects, but together one would be turned against the other."""
    generator = np.random.default_rng(2)
    labels = np.arange(200) % 2
    top = labels + generator.normal(size=200)
    cls = top + 0.3 * generator.normal(size=200)  # the same with noise: it may be used to correct top, never below 0
    fitted = Logistic.fit(cls - 0.1 * labels, top, labels)
    assert min(fitted.a, fitted.b) == 0 < fitted.b


def test_a_constant_input_has_no_say():
    _, top, labels = evidence(3)
    fitted = Logistic.fit(np.full(80, 0.3), top, labels)
    assert fitted.a == 0 < fitted.b
    assert fitted(torch.tensor([0.9]), torch.tensor([5.0])).isfinite().all()


def test_nothing_to_fit_is_told():
    cls, top, labels = evidence(4)
    with pytest.raises(ValueError, match=r"normal and anomalous images, got 0 and 20"):
        Logistic.fit(cls[labels], top[labels], labels[labels])
    with pytest.raises(ValueError, match=r"higher for the 20 anomalous images than for the 60 normal ones"):
        Logistic.fit(-cls, -top, labels)
    with pytest.raises(ValueError, match="shape"):
        Logistic.fit(cls, top, labels[:3])


# the top of a map


def test_top_mean_by_hand():
    maps_BHW = torch.stack([torch.arange(200.0).view(10, 20), torch.full((10, 20), -3.0)])
    assert top_mean(maps_BHW).tolist() == [198.5, -3.0]  # 1 % of 200: the highest two
    assert top_mean(maps_BHW, share=1.0).tolist() == [99.5, -3.0]
    assert top_mean(torch.tensor([[[1.0, 4.0], [2.0, 3.0]]])).tolist() == [4.0]  # one at least
    assert top_mean(torch.arange(100.0).view(1, 10, 10), share=0.29).item() == pytest.approx(np.arange(71, 100).mean())


@given(seed=st.integers(0, 999), side=st.integers(1, 12), share=st.sampled_from([0.01, 0.1, 0.5]))
def test_top_mean_is_that_of_sorted_pixels(seed, side, share):
    maps_BHW = torch.rand(2, side, side, generator=torch.Generator().manual_seed(seed))
    count = max(1, int(round(share * side * side, 6)))
    expected = np.sort(maps_BHW.flatten(1).numpy(), axis=1)[:, -count:].mean(axis=1)
    assert top_mean(maps_BHW, share=share).numpy() == pytest.approx(expected, abs=1e-6)


def test_relative_scores_by_hand():
    """Maps from 2 to 6 and cosines from .1 to .5: stretched to 0 to 1, then halved and added."""
    found = compute_relative_scores([0.1, 0.3, 0.5], [4.0, 6.0, 3.0], lowest=2.0, domain="industrial")
    assert found == pytest.approx([0.25, 0.75, 0.625])
    assert compute_relative_scores([0.1, 0.3, 0.5], [4.0, 6.0, 3.0], lowest=2.0, domain="medical") == pytest.approx(
        [0.5, 1, 0.25]
    )
    assert compute_relative_scores([0.3, 0.3], [1.0, 1.0], lowest=1.0, domain="industrial").tolist() == [0, 0]
