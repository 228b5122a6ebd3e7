"""Ties of any number of positives: by hand, by chance's closed form, and over every order of the tied items."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_common.metrics import image_text_retrieval, retrieval_metrics
from clip_common.metrics.ranking import BLOCK, DEPTH


def measures(right_M, ks=(1, 3, 5)):
    """Rank of the first positive, AP@10, 1/rank up to 10 and hits at each of `ks`, of one ranking."""
    ranks = 1 + np.flatnonzero(right_M)
    precision = sum(k / rank for k, rank in enumerate(ranks, start=1) if rank <= 10) / min(len(ranks), 10)
    return ranks[0], precision, (1 / ranks[0] if ranks[0] <= 10 else 0.0), *(float(ranks[0] <= k) for k in ks)


def metrics_of(scores_NM, positives, **options):
    """Metrics of queries and a gallery whose dot products are exactly these scores."""
    scores_NM = torch.as_tensor(scores_NM, dtype=torch.float32)
    return retrieval_metrics(scores_NM, torch.eye(scores_NM.shape[1]), positives, normalise=False, **options)


def test_a_tie_is_shared_lost_or_won_as_asked():
    scores = [[1.0, 1.0, 1.0, 0.0, 2.0]]
    ranks = {
        ties: metrics_of(scores, torch.tensor([0]), ties=ties).metrics["MedR"]
        for ties in ("optimistic", "mean", "pessimistic")
    }
    assert ranks == {"optimistic": 2, "mean": 3, "pessimistic": 4}


def test_positives_that_tie_with_each_other_alone_are_found_at_the_top():
    result = metrics_of([[3, 3, 1, 0]], [[0, 1]])
    assert result.metrics["R@1"] == result.metrics["mAP@10"] == 1


def test_a_collapsed_model_gets_what_chance_gets_not_a_perfect_score():
    result = image_text_retrieval(torch.ones(19, 1), torch.ones(19, 1), torch.arange(19))
    chance = {
        "R@1": 1 / 19,
        "R@5": 5 / 19,
        "R@10": 10 / 19,
        "MRR@10": sum(1 / r for r in range(1, 11)) / 19,
        "MeanR": 10,
    }
    chance["mAP@10"] = chance["MRR@10"]
    for name, value in chance.items():
        assert result.metrics[f"i2t/{name}"] == result.metrics[f"t2i/{name}"] == pytest.approx(value), name
    tiny = image_text_retrieval(torch.ones(2, 1), torch.ones(2, 1), torch.arange(2))
    assert tiny.metrics["rsum"] == pytest.approx(100 * 2 * (1 / 2 + 1 + 1))


def test_a_collapsed_model_with_several_positives_gets_what_chance_gets():
    result = image_text_retrieval(torch.ones(6, 1), torch.ones(12, 1), torch.arange(12) // 2).metrics
    for k in (1, 5, 10):
        assert result[f"i2t/R@{k}"] == pytest.approx(1 - math.comb(10, k) / math.comb(12, k))
        assert result[f"t2i/R@{k}"] == pytest.approx(min(1, k / 6))
    assert result["i2t/MeanR"] == pytest.approx(13 / 3)  # the first of 2 among 12 in random order
    first = [(12 - rank) / math.comb(12, 2) for rank in range(1, 11)]  # the other one is behind it
    assert result["i2t/MRR@10"] == pytest.approx(sum(share / rank for rank, share in enumerate(first, start=1)))
    precision = sum(2 / 12 * (1 + (rank - 1) / 11) / rank for rank in range(1, 11)) / 2
    assert result["i2t/mAP@10"] == pytest.approx(precision)


def test_a_tie_of_two_positives_and_a_negative_by_hand():
    # one negative ahead, then p, p, n in any order: the first positive is second in 2 of 3 orders, else third
    result = metrics_of([[9, 5, 5, 5, 1]], [[1, 2]], ks=(1, 2, 3)).metrics
    assert [result[f"R@{k}"] for k in (1, 2, 3)] == pytest.approx([0, 2 / 3, 1])
    assert result["MeanR"] == pytest.approx(7 / 3)
    assert result["MRR@10"] == pytest.approx(2 / 3 / 2 + 1 / 3 / 3)
    # of ranks 2, 3 and 4 the positives take two: AP = (1/2 + 2/3, 1/2 + 2/4 or 1/3 + 2/4) / 2
    assert result["mAP@10"] == pytest.approx((1 / 2 + 2 / 3 + 1 / 2 + 2 / 4 + 1 / 3 + 2 / 4) / 3 / 2)


@settings(deadline=None, max_examples=60)
@given(
    scores=st.lists(st.integers(0, 2), min_size=2, max_size=7),
    right=st.integers(1, 2**7 - 1),
    filler=st.integers(0, 8),
    tile=st.sampled_from([None, 1]),
)
def test_metrics_are_means_over_all_orders_of_the_ties(scores, right, filler, tile):
    positives = [item for item in range(len(scores)) if right >> item & 1] or [0]
    scores_M = np.array(scores + [9] * filler, dtype=np.float32)  # negatives on top, so that ranks cross 10
    right_M = np.isin(np.arange(len(scores_M)), positives)
    tail = range(len(scores))
    orders = {tuple(sorted(order, key=lambda item: -scores[item])) for order in itertools.permutations(tail)}
    expected = np.mean([measures(np.r_[np.zeros(filler, bool), right_M[list(order)]]) for order in orders], axis=0)
    result = metrics_of(np.stack([scores_M, scores_M]), [positives, positives], ks=(1, 3, 5), tile=tile).per_query
    found = [result[name] for name in ("rank", "mAP@10", "MRR@10", "R@1", "R@3", "R@5")]
    np.testing.assert_allclose(found, np.stack([expected, expected], axis=1), rtol=1e-12, atol=1e-12)


def test_a_collapsed_gallery_that_is_wider_than_a_shortlist_is_counted_in_full():
    items, k = 5 * DEPTH * BLOCK + 7, 10
    scores_NM = np.ones((3, items), dtype=np.float32)
    scores_NM[1, 5] = 2.0  # a positive ahead of the tie
    scores_NM[2, 6] = 2.0  # a negative ahead of it
    result = metrics_of(scores_NM, [[5, 7, 8]] * 3).per_query
    miss = math.comb(items - 3, k) / math.comb(items, k)
    behind = math.comb(items - 4, k - 1) / math.comb(items - 1, k - 1)
    np.testing.assert_allclose(result["R@10"], [1 - miss, 1, 1 - behind])
    np.testing.assert_allclose(result["rank"], [(items + 1) / 4, 1, 1 + items / 4])
    later = sum(2 / (items - 1) * (2 + (rank - 2) / (items - 2)) / rank for rank in range(2, 11))
    np.testing.assert_allclose(result["mAP@10"][1], (1 + later) / 3)
