"""Recall of a search with its interval, and results without near-duplicates."""

import math

import pytest
import torch
import toy_index as toy
from hypothesis import given
from hypothesis import strategies as st

from clip_common.index import VectorIndex, certify, drop_near_duplicates
from clip_common.index.certificate import wilson_interval

# certificates


def test_a_search_that_finds_everything_has_recall_one_and_the_interval_of_its_sample():
    index = toy.filled(None, toy.nested_vectors(300, 32, seed=0))
    certificate = certify(index, toy.nested_vectors(40, 32, seed=1), 10, dim=8, candidates=300)
    assert (certificate.recall, certificate.high, certificate.queries, certificate.k) == (1.0, 1.0, 40, 10)
    assert certificate.low == pytest.approx(1 / (1 + 1.959964**2 / 40))


def test_recall_by_hand():
    """Of the two items most similar to each query, the search by the first number finds none, one, and both."""
    index = toy.index_in(None)
    vectors_ND = [[1.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0], [-1.0, 8.0, 0.0, 0.0], [-1.0, 0.0, 9.0, 9.0]]
    index.add(list("abcd"), torch.tensor(vectors_ND))
    query_QD = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    best = [{hit.id for hit in hits} for hits in index.nearest_to_each(query_QD, 2)]
    assert best == [{"c", "d"}, {"c", "b"}, {"a", "b"}]
    certificate = certify(index, query_QD, 2, dim=1)
    assert certificate.recall == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert (certificate.low, certificate.high) == pytest.approx(wilson_interval(0.5, 3))


def test_of_equal_items_any_counts_as_found():
    index = toy.filled(None, toy.nested_vectors(1, 32, seed=0).repeat(50, 1))
    assert certify(index, toy.nested_vectors(8, 32, seed=1), 5, candidates=5, first="binary").recall == 1


def test_stored_vectors_are_queries_that_do_not_find_themselves():
    vectors_ND = torch.eye(4)[[0, 1, 2]] + torch.tensor([0.0, 0.0, 0.0, 1.0])
    index = toy.index_in(None)
    index.add(list("abc"), vectors_ND)
    # the first number says that b and c are equally far from a, and finds one of the others for each
    certificate = certify(index, None, 2, dim=1)
    assert (certificate.recall, certificate.queries) == (1.0, 3)
    lonely = toy.index_in(None)
    lonely.add(["a"], torch.ones(1, 4))
    with pytest.raises(ValueError, match="nothing to find"):
        certify(lonely, None, 1)


def test_the_sample_is_drawn_from_the_seed():
    index = toy.filled(None, toy.nested_vectors(500, 32, seed=0))
    query_QD = toy.nested_vectors(300, 32, seed=1)
    options = {"dim": 2, "candidates": 20, "sample": 30}
    first, again, other = (certify(index, query_QD, 5, **options, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.queries == 30
    assert certify(index, None, 5, **options, seed=3) == certify(index, None, 5, **options, seed=3)
    assert 0 < first.low < first.recall < first.high < 1


def test_a_certificate_covers_the_true_recall():
    """Of 300 samples of 40 queries, at least 95 % have the recall on all 4,000 queries in their interval."""
    shares_Q = (torch.rand(4000, 10, generator=torch.Generator().manual_seed(0)) < 0.9).float()
    shares_Q[:400] = 0.0  # hard queries: misses come together
    shares_Q, covered = shares_Q.mean(dim=1), 0
    for seed in range(300):
        drawn = torch.randperm(4000, generator=torch.Generator().manual_seed(seed))[:40]
        low, high = wilson_interval(float(shares_Q[drawn].mean()), 40)
        covered += low <= float(shares_Q.mean()) <= high
    assert covered >= 0.95 * 300


@given(found=st.integers(0, 50), more=st.integers(0, 50))
def test_the_interval_is_wilson_s(found, more):
    """Its ends solve |mean - p| = z sqrt(p (1 - p) / n)."""
    n = found + more + 1
    mean = found / n
    low, high = wilson_interval(mean, n)
    assert 0 <= low <= mean <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(mean - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / n), abs=1e-9)


def test_no_queries_are_refused():
    index = toy.filled(None, toy.nested_vectors(9, 32, seed=0))
    with pytest.raises(ValueError, match="0 queries and 9 items"):
        certify(index, torch.empty(0, 32), 3)
    with pytest.raises(ValueError, match="0 queries and 0 items"):
        certify(VectorIndex(**toy.ABOUT), None, 3)


# near-duplicates


def plane(*degrees: float) -> torch.Tensor:
    """Unit vectors of width 4 at these angles to the first axis."""
    turned = torch.tensor(degrees).deg2rad()
    return torch.stack([turned.cos(), turned.sin(), turned * 0, turned * 0], dim=1)


def test_near_duplicates_are_dropped_in_the_order_of_rank():
    """By hand, at 10 degrees: 8 is near 0; 16 is near 8, which was dropped, so it stays; 24 is near 16."""
    threshold = math.cos(math.radians(10))
    ranked_KD = plane(0, 8, 16, 24, 90, 5) * torch.tensor([1.0, 2, 3, 4, 5, 6])[:, None]  # lengths do not matter
    assert drop_near_duplicates(ranked_KD, threshold) == {0: 2, 2: 1, 4: 0}
    assert drop_near_duplicates(ranked_KD, threshold, k=2) == {0: 1, 2: 0}
    assert drop_near_duplicates(ranked_KD[:0], threshold) == {}


@pytest.mark.parametrize("options", [{}, {"dim": 2}, {"dim": 2, "candidates": 3}, {"candidates": 3, "first": "int8"}])
def test_an_index_returns_k_distinct_items(options):
    index = toy.index_in(None)
    degrees = [0.5 * number for number in range(40)] + [40.0, 60.0, 61.0, 90.0]
    index.add([str(angle) for angle in degrees], plane(*degrees))
    threshold = math.cos(math.radians(25))
    hits = index.nearest(plane(0.0)[0], 3, unique=threshold, **options)
    assert [(hit.id, hit.duplicates) for hit in hits] == [("0.0", 39), ("40.0", 2), ("90.0", 0)]
    assert [hit.similarity for hit in hits] == pytest.approx([1, math.cos(math.radians(40)), 0], abs=1e-6)


def test_fewer_distinct_items_than_wanted_are_all_returned():
    index = toy.filled(None, toy.nested_vectors(1, 24, seed=0).repeat(100, 1))
    hits = index.nearest_to_each(toy.nested_vectors(3, 24, seed=1), 5, unique=0.99)
    assert [[(hit.id, hit.duplicates) for hit in some] for some in hits] == [[("0", 99)]] * 3
    assert toy.index_in(None).nearest(torch.ones(4), 3, unique=0.9) == []
