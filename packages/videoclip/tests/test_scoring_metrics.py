"""Numbers of a scored set, against scikit-learn, numpy and cases worked out by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from clip_common.errors import DataError
from videoclip.scoring.metrics import (
    average_by_subject,
    compute_chance,
    compute_recalls,
    cosine,
    count_confusion,
    find_majority,
    score_alignment,
    score_classification,
    score_confusion,
    score_retrieval,
)


def once(count):
    return np.ones((1, count))


def table(label, predicted, *, classes, weights=None):
    label, predicted = np.array(label), np.array(predicted)
    return count_confusion(label, predicted, once(len(label)) if weights is None else weights, classes=classes)


def sets_of_clips(*, classes=4):
    pair = st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1))
    return st.lists(pair, min_size=1, max_size=25)


@given(sets_of_clips())
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_classification_is_scikit_learns_also_where_classes_are_missing(clips):
    label, predicted = np.array(clips).T
    found_KK = table(label, predicted, classes=4)
    assert np.array_equal(found_KK[0], confusion_matrix(label, predicted, labels=range(4)))
    values = score_confusion(found_KK)
    assert values["accuracy"] == pytest.approx(accuracy_score(label, predicted))
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(label, predicted))
    assert values["macro_f1"] == pytest.approx(f1_score(label, predicted, average="macro", zero_division=0))
    present = sorted(set(label))
    assert compute_recalls(found_KK)[0, present] == pytest.approx(
        recall_score(label, predicted, labels=present, average=None)
    )
    assert np.isfinite(compute_recalls(found_KK)[0]).nonzero()[0].tolist() == present


@given(sets_of_clips(), st.data())
def test_weights_are_as_clips_that_are_there_so_often(clips, data):
    label, predicted = np.array(clips).T
    rows = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=len(clips), max_size=len(clips)), min_size=1))
    weighted = score_confusion(table(label, predicted, classes=4, weights=np.array(rows)))
    for place, row in enumerate(rows):
        repeated = score_confusion(table(label.repeat(row), predicted.repeat(row), classes=4))
        for name, values in repeated.items():
            assert weighted[name][place] == pytest.approx(values[0], nan_ok=True)


def test_classification_by_hand():
    # class 0: 3 clips, 2 found; class 1: 1 clip, found; class 2: no clips, once said; class 3: in neither
    values = score_confusion(table([0, 0, 0, 1], [0, 0, 2, 1], classes=4))
    assert values["accuracy"] == pytest.approx(3 / 4)
    assert values["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert values["macro_f1"] == pytest.approx((4 / 5 + 1 + 0) / 3)


def test_classification_of_a_set_leaves_out_what_is_not_known():
    predicted, label = torch.tensor([0, 0, 2, 1, 1]), torch.tensor([0, 0, 0, 1, -1])
    found = score_classification(predicted, label, classes=4)
    expected = {"accuracy": 3 / 4, "balanced_accuracy": 5 / 6, "macro_f1": 1.8 / 3, "recall_0": 2 / 3, "recall_1": 1}
    assert found == pytest.approx(expected)
    assert score_classification([0, 1], [-1, -1], classes=2) == {}


def test_no_clips_have_no_numbers():
    for values in score_confusion(table(np.zeros(0, int), np.zeros(0, int), classes=3)).values():
        assert np.isnan(values).all()


@pytest.mark.parametrize(("labels", "expected"), [([2, 2, 0], 2), ([1, 0, 1, 0, -1, -1, -1], 0), ([3], 3)])
def test_the_majority_is_of_known_labels_and_the_lowest_of_several(labels, expected):
    assert find_majority(labels) == expected


@pytest.mark.parametrize("labels", [[], [-1, -1]])
def test_no_majority_without_labels(labels):
    with pytest.raises(DataError, match="no training clip has a label"):
        find_majority(labels)


def test_a_subject_is_judged_by_its_mean_probability():
    # subject 7 is taken for 1 in two of three clips, but the third is sure of 0
    probability = np.array([[0.4, 0.6], [0.99, 0.01], [0.2, 0.8], [0.4, 0.6]])
    found = average_by_subject(probability, np.array([0, 0, 1, 0]), np.array([7, 7, 3, 7]))
    assert found.subject_M.tolist() == [3, 7]
    assert found.label_M.tolist() == [1, 0]
    assert found.probability_MK == pytest.approx(np.array([[0.2, 0.8], [1.79 / 3, 1.21 / 3]]))


def test_a_subject_with_two_labels_is_two():
    found = average_by_subject(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), np.array([0, 1, 1]), np.array([5, 5, 5]))
    assert list(zip(found.subject_M, found.label_M, strict=True)) == [(5, 0), (5, 1)]
    assert found.probability_MK.tolist() == [[1.0, 0.0], [0.25, 0.75]]


def test_no_clips_are_no_subjects():
    found = average_by_subject(np.zeros((0, 3)), np.zeros(0, int), np.zeros(0, int))
    assert found.probability_MK.shape == (0, 3)


def reference_recall(queries, gallery, positives, k):
    """Share of queries with one of their positives among their k nearest."""
    order = np.argsort(-(queries @ gallery.T), axis=1)[:, :k]
    return [float(bool(set(row.tolist()) & set(own))) for row, own in zip(order, positives, strict=True)]


def unit(shape, *, seed):
    vectors = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_retrieval_is_the_reference_strict_and_by_map():
    attn = unit((10, 8), seed=0).repeat(3, axis=0) + 0.3 * unit((30, 8), seed=1)  # one map, three different windows
    attn /= np.linalg.norm(attn, axis=1, keepdims=True)
    video = attn + 0.5 * unit((30, 8), seed=2)
    of_map = np.arange(30) // 3 * 10  # three clips a map
    of_regions = np.arange(30) % 4
    found = score_retrieval(video, attn, map_N=of_map, regions_N=of_regions)
    alone = [[index] for index in range(30)]
    together, like = ([np.flatnonzero(of == one).tolist() for one in of] for of in (of_map, of_regions))
    kinds = (("", alone), ("_group", together), ("_regions", like))
    for k, (suffix, positives) in itertools.product((1, 5), kinds):
        expected = reference_recall(video / np.linalg.norm(video, axis=1, keepdims=True), attn, positives, k)
        assert found[f"retrieval_r{k}_v2a{suffix}"].tolist() == expected
        expected = reference_recall(attn, video / np.linalg.norm(video, axis=1, keepdims=True), positives, k)
        assert found[f"retrieval_r{k}_a2v{suffix}"].tolist() == expected
    assert 0 < found["retrieval_r1_v2a"].mean() < found["retrieval_r1_v2a_group"].mean() < 1


def test_maps_that_are_one_share_a_strict_hit_and_are_each_a_hit_of_the_group():
    attn = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]  # the first two clips have one map
    found = score_retrieval(attn, attn, map_N=np.array([9, 9, 4, 5]), regions_N=np.arange(4))
    assert found["retrieval_r1_v2a"].tolist() == [0.5, 0.5, 1, 1]
    assert found["retrieval_r1_v2a_group"].tolist() == [1, 1, 1, 1]


def test_the_two_ways_differ_as_they_should():
    video = np.array([[1, 0], [1, 0.1]], np.float32)
    attn = np.array([[1, 0.2], [0, 1]], np.float32)
    found = score_retrieval(video, attn, map_N=np.array([0, 1]), regions_N=np.array([0, 1]))
    assert found["retrieval_r1_v2a"].tolist() == [1, 0]  # both clips lie nearest to the first map
    assert found["retrieval_r1_a2v"].tolist() == [0, 1]  # both maps lie nearest to the second clip
    assert found["retrieval_r5_v2a"].tolist() == [1, 1]  # all of two are among five


def test_a_collapsed_model_retrieves_what_chance_does():
    same = np.ones((8, 4), np.float32)
    for name, hits in score_retrieval(same, same, map_N=np.arange(8), regions_N=np.arange(8)).items():
        assert hits.mean() == pytest.approx(int(name[11]) / 8)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=7))
def test_chance_is_the_mean_over_all_orders(of_map):
    count, chance = len(of_map), compute_chance(np.array(of_map), np.array(of_map)[::-1])
    for k in (1, 5):
        drawn = list(itertools.combinations(range(count), min(k, count)))
        hits = [any(of_map[item] == own for item in few) for own in of_map for few in drawn]
        assert chance[f"retrieval_r{k}_chance_group"] == pytest.approx(np.mean(hits))
        assert chance[f"retrieval_r{k}_chance_regions"] == pytest.approx(np.mean(hits))  # the same sizes, reversed
        assert chance[f"retrieval_r{k}_chance"] == pytest.approx(min(1, k / count))


@given(st.lists(st.tuples(st.floats(-1, 1, width=16), st.booleans()), min_size=3, max_size=30))
def test_alignment_is_numpys(clips):
    similarity, correct = np.array([one for one, _ in clips]), np.array([right for _, right in clips])
    found = {name: values[0] for name, values in score_alignment(similarity, correct, once(len(clips))).items()}
    for name, kept in (("correct", correct), ("incorrect", ~correct)):
        expected = similarity[kept].mean() if kept.any() else np.nan
        assert found[f"align_sim_{name}"] == pytest.approx(expected, nan_ok=True, abs=1e-9)
    assert np.isnan(found["align_sim_gap"]) == (correct.all() or not correct.any())
    if correct.all() or not correct.any() or similarity.std() < 1e-6:
        assert np.isnan(found["align_sim_corr"])
    else:
        assert found["align_sim_corr"] == pytest.approx(np.corrcoef(similarity, correct)[0, 1], abs=1e-6)


def test_alignment_by_hand_and_weighted():
    similarity, correct = np.array([0.9, 0.5, 0.1, 0.3]), np.array([True, True, False, False])
    weights = np.array([[1, 1, 1, 1], [0, 3, 1, 0], [2, 2, 0, 0]])
    found = score_alignment(similarity, correct, weights)
    assert found["align_sim_correct"] == pytest.approx([0.7, 0.5, 0.7])
    assert found["align_sim_incorrect"] == pytest.approx([0.2, 0.1, np.nan], nan_ok=True)
    assert found["align_sim_gap"] == pytest.approx([0.5, 0.4, np.nan], nan_ok=True)
    # row 0: covariance 0.125, deviations √0.0875 and 1/2; row 1: two values and a 0/1 are one line
    assert found["align_sim_corr"] == pytest.approx([0.125 / (0.0875**0.5 / 2), 1, np.nan], nan_ok=True)


def test_one_similarity_for_all_has_no_correlation():
    noise = np.float32(0.7) + np.array([0, 1, 0, -1]) * np.finfo(np.float32).eps
    found = score_alignment(noise.astype(np.float64), np.array([True, True, False, False]), once(4))
    assert np.isnan(found["align_sim_corr"])
    assert found["align_sim_gap"] == pytest.approx(0, abs=1e-6)


def test_cosine_by_hand():
    a, b = np.array([[3, 4], [1, 0], [0, 0]], np.float32), np.array([[6, 8], [-2, 0], [1, 1]], np.float32)
    assert cosine(a, b) == pytest.approx([1, -1, 0])
