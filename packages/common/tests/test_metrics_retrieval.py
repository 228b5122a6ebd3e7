"""Retrieval metrics against hand-computed cases and a brute-force reference that counts one query at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_common.metrics import ImageTextResult, image_text_retrieval, paired_bootstrap, ranking, retrieval_metrics
from clip_common.metrics.ranking import BLOCK, DEPTH


def embeddings_with(scores_NM):
    """Queries and a gallery whose dot products are exactly these scores."""
    scores_NM = torch.as_tensor(scores_NM, dtype=torch.float32)
    return scores_NM, torch.eye(scores_NM.shape[1])


def metrics_of(scores_NM, positives, **options):
    return retrieval_metrics(*embeddings_with(scores_NM), positives, normalise=False, **options)


def reference(scores_M, positives, ties):
    """Rank of the first positive and AP@10 of one query; with "mean", their means over all orders of the ties."""
    right_M = np.isin(np.arange(len(scores_M)), positives)
    if ties != "mean":  # of equal scores the positives come first, or last
        order_M = np.lexsort((right_M if ties == "pessimistic" else ~right_M, -scores_M))
        ranks = 1 + np.flatnonzero(right_M[order_M])
        return ranks[0], sum(k / rank for k, rank in enumerate(ranks, start=1) if rank <= 10) / min(len(ranks), 10)
    first, precision, ahead, found = None, 0.0, 0, 0
    for level in sorted(set(scores_M), reverse=True):  # one tie after the other
        tied, here = np.sum(scores_M == level), np.sum(right_M[scores_M == level])
        if here and first is None:
            first = ahead + (tied + 1) / (here + 1)
        for place in range(1, tied + 1 if here else 1):
            if ahead + place <= 10:  # a positive with probability here / tied; of the others, this many are before it
                before = found + (place - 1) * (here - 1) / max(tied - 1, 1)
                precision += here / tied * (before + 1) / (ahead + place)
        ahead, found = ahead + tied, found + here
    return first, precision / min(found, 10)


def tied_world(seed, *, queries=7, items=23, levels=6, most=4):
    """Few distinct scores, so that ties abound, and one to `most` positives a query."""
    generator = np.random.default_rng(seed)
    scores_NM = generator.integers(levels, size=(queries, items)).astype(np.float32)
    positives = [generator.choice(items, size=generator.integers(1, most + 1), replace=False) for _ in range(queries)]
    return scores_NM, positives


def captioned_world(seed, *, images=40, signal=0.5, width=16, captions=5):
    """Noisy captions of images, in shuffled order."""
    generator = torch.Generator().manual_seed(seed)
    image_ND = torch.randn(images, width, generator=generator)
    image_M = torch.arange(images).repeat_interleave(captions)[torch.randperm(images * captions, generator=generator)]
    noise_MD = torch.randn(len(image_M), width, generator=generator)
    return image_ND, signal * image_ND[image_M] + noise_MD, image_M


def test_one_positive_by_hand():
    # ranks 1, 2, 4, 3
    result = metrics_of([[9, 1, 2, 3], [9, 5, 1, 2], [9, 8, 1, 7], [5, 6, 1, 4]], torch.tensor([0, 1, 2, 3]), ks=(1, 2))
    assert result.per_query["rank"].tolist() == [1, 2, 4, 3]
    assert result.metrics == pytest.approx(
        {
            "R@1": 1 / 4,
            "R@2": 2 / 4,
            "MRR@10": (1 + 1 / 2 + 1 / 4 + 1 / 3) / 4,
            "mAP@10": 25 / 48,
            "MedR": 2.5,
            "MeanR": 2.5,
        }
    )


def test_average_precision_of_several_positives_by_hand():
    # positives at ranks 1, 3 and 12 of 12: AP@10 = (1/1 + 2/3) / min(3, 10)
    result = metrics_of([[12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]], [[0, 2, 11]])
    assert result.metrics["mAP@10"] == pytest.approx((1 + 2 / 3) / 3)
    assert result.metrics["R@1"] == 1


def test_more_than_ten_positives_are_judged_by_the_ten_that_can_be_seen():
    result = metrics_of([list(range(20, 0, -1))], [list(range(14))])
    assert result.metrics["mAP@10"] == pytest.approx(1)


def test_rank_beyond_ten_counts_nothing_in_mrr_and_map():
    result = metrics_of([list(range(20))], torch.tensor([5]))
    assert result.metrics["MedR"] == 15
    assert result.metrics["MRR@10"] == result.metrics["mAP@10"] == 0


def test_every_place_in_a_tie_is_as_likely():
    for seed in range(5):
        scores_NM, positives = tied_world(seed, most=1)
        result = metrics_of(scores_NM, positives, ks=(1, 3, 5)).per_query
        for query, (row, (right,)) in enumerate(zip(scores_NM, positives, strict=True)):
            best, worst = 1 + np.sum(row > row[right]), np.sum(row >= row[right])
            tie = np.arange(best, worst + 1)
            assert result["rank"][query] == np.mean(tie)
            assert result["MRR@10"][query] == pytest.approx(np.mean((tie <= 10) / tie))
            for k in (1, 3, 5):
                assert result[f"R@{k}"][query] == pytest.approx(np.mean(tie <= k))


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e7])
def test_a_tie_of_plain_products_is_measured_by_the_positive_whatever_else_is_in_the_gallery(length):
    query_1D, gallery_MD = torch.tensor([[3.0, 0.0]]), length * torch.tensor([[1.0, 0.0], [1 - 1e-5, 0.0], [0.0, 1e7]])
    assert retrieval_metrics(query_1D, gallery_MD, torch.tensor([0]), normalise=False).metrics["MedR"] == 1
    gallery_MD[1, 0] = length * (1 - 1e-7)
    assert retrieval_metrics(query_1D, gallery_MD, torch.tensor([0]), normalise=False).metrics["MedR"] == 1.5


@pytest.mark.parametrize("ties", ["mean", "optimistic", "pessimistic"])
@pytest.mark.parametrize("tile", [None, 1, 3])
def test_ties_and_several_positives_equal_the_reference(ties, tile):
    for seed in range(5):
        scores_NM, positives = tied_world(seed)
        result = metrics_of(scores_NM, positives, ties=ties, tile=tile)
        expected = [reference(row, found, ties) for row, found in zip(scores_NM, positives, strict=True)]
        np.testing.assert_allclose(result.per_query["rank"], [rank for rank, _ in expected])
        np.testing.assert_allclose(result.per_query["mAP@10"], [precision for _, precision in expected])


@pytest.mark.parametrize("ties", ["mean", "optimistic", "pessimistic"])
@pytest.mark.parametrize("levels", [50, 1000])
def test_the_shortlist_of_a_wide_gallery_loses_nothing(ties, levels):
    scores_NM, positives = tied_world(0, queries=60, items=5 * DEPTH * BLOCK + 7, levels=levels, most=14)
    for row, found in zip(scores_NM[::2], positives[::2], strict=True):
        row[found] += levels * 0.99  # every second query is an easy one, so that some ranks are within the first ten
    result = metrics_of(scores_NM, positives, ties=ties)
    expected = [reference(row, found, ties) for row, found in zip(scores_NM, positives, strict=True)]
    assert sum(precision > 0 for _, precision in expected) > 20
    np.testing.assert_allclose(result.per_query["rank"], [rank for rank, _ in expected])
    np.testing.assert_allclose(result.per_query["mAP@10"], [precision for _, precision in expected])


@pytest.mark.parametrize("tile", [1, 4, 15, 1000])
def test_uneven_tiles_equal_the_dense_result(tile):
    image_ND, text_MD, image_M = captioned_world(0, images=15)
    cosine_NM = torch.nn.functional.normalize(image_ND) @ torch.nn.functional.normalize(text_MD).T
    result = image_text_retrieval(image_ND, text_MD, image_M, tile=tile)
    for way, scores, positives in (
        (result.image_to_text, cosine_NM, [np.flatnonzero(image_M == i) for i in range(len(image_ND))]),
        (result.text_to_image, cosine_NM.T, [[i] for i in image_M.tolist()]),
    ):
        expected = [reference(row, found, "mean") for row, found in zip(scores.numpy(), positives, strict=True)]
        np.testing.assert_allclose(way.per_query["rank"], [rank for rank, _ in expected])
        np.testing.assert_allclose(way.per_query["mAP@10"], [precision for _, precision in expected])


def test_each_score_is_computed_once_and_no_tile_is_larger_than_asked(monkeypatch):
    computed = []

    def recorded(rows_TD, columns_UD, scores=ranking._scores):
        computed.append((len(rows_TD), len(columns_UD)))
        return scores(rows_TD, columns_UD)

    monkeypatch.setattr(ranking, "_scores", recorded)
    image_text_retrieval(*captioned_world(0), tile=7)
    assert sum(rows * columns for rows, columns in computed) == 40 * 200
    assert max(computed) == (7, 7 * 5)


@pytest.mark.parametrize("ties", ["mean", "optimistic", "pessimistic"])
@pytest.mark.parametrize("tile", [None, 3])
def test_both_ways_at_once_equal_each_way_by_itself(ties, tile):
    generator = torch.Generator().manual_seed(1)
    captions_KD = torch.randn(4, 8, generator=generator)  # few, so that most embeddings have duplicates
    image_ND = captions_KD[torch.randint(4, (11,), generator=generator)]
    text_MD = captions_KD[torch.randint(4, (30,), generator=generator)]
    image_M = torch.cat([torch.arange(11), torch.randint(11, (19,), generator=generator)])  # 1 to many captions
    both = image_text_retrieval(image_ND, text_MD, image_M, ties=ties, tile=tile)
    captions = [np.flatnonzero(image_M == image) for image in range(11)]
    assert both.image_to_text.metrics == retrieval_metrics(image_ND, text_MD, captions, ties=ties).metrics
    assert both.text_to_image.metrics == retrieval_metrics(text_MD, image_ND, image_M, ties=ties).metrics


def test_rsum_is_a_hundred_times_the_six_recalls():
    result = image_text_retrieval(*captioned_world(2))
    recalls = [value for name, value in result.metrics.items() if "R@" in name and "MRR" not in name]
    assert len(recalls) == 6
    assert result.metrics["rsum"] == pytest.approx(100 * sum(recalls))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**16), tile=st.integers(1, 50))
def test_the_order_of_images_and_texts_does_not_matter(seed, tile):
    image_ND, text_MD, image_M = captioned_world(seed % 7, images=12)
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randperm(12, generator=generator), torch.randperm(60, generator=generator)
    shuffled = image_text_retrieval(image_ND[images], text_MD[texts], torch.argsort(images)[image_M][texts], tile=tile)
    plain = image_text_retrieval(image_ND, text_MD, image_M)
    assert shuffled.metrics == pytest.approx(plain.metrics)
    np.testing.assert_array_equal(
        shuffled.text_to_image.per_query["rank"], plain.text_to_image.per_query["rank"][texts]
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([0.5, 2.0, 1024.0]), shift=st.integers(-8, 8))
def test_monotone_transforms_of_the_scores_change_nothing(seed, scale, shift):
    scores_NM, positives = tied_world(seed)
    assert metrics_of(scale * scores_NM + shift, positives).metrics == metrics_of(scores_NM, positives).metrics


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**16))
def test_a_single_positive_is_halfway_between_optimistic_and_pessimistic(seed):
    scores_NM, positives = tied_world(seed, most=1)
    rank = {
        ties: metrics_of(scores_NM, positives, ties=ties).per_query["rank"]
        for ties in ("optimistic", "mean", "pessimistic")
    }
    np.testing.assert_allclose(rank["mean"], (rank["optimistic"] + rank["pessimistic"]) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_are_compared_in_float32(dtype):
    image_ND, text_MD, image_M = captioned_world(3)
    image_ND, text_MD = image_ND.to(dtype), text_MD.to(dtype)
    assert (
        image_text_retrieval(image_ND, text_MD, image_M).metrics
        == image_text_retrieval(image_ND.float(), text_MD.float(), image_M).metrics
    )


def test_autocast_around_an_evaluation_does_not_coarsen_it():
    image_ND, text_MD, image_M = captioned_world(4)
    plain = image_text_retrieval(image_ND, text_MD, image_M).metrics
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert image_text_retrieval(image_ND.requires_grad_(), text_MD, image_M).metrics == plain


def test_a_single_image_with_its_captions_is_found():
    result = image_text_retrieval(torch.randn(1, 4), torch.randn(5, 4), torch.zeros(5, dtype=torch.long))
    assert result.metrics["rsum"] == 600
    assert result.metrics["i2t/mAP@10"] == 1
    assert result.intervals["rsum"] == (600, 600)


def test_positives_may_be_listed_twice_and_in_any_order():
    scores = [[3, 1, 2, 5]]
    assert metrics_of(scores, [[2, 0, 2]]).metrics == metrics_of(scores, [[0, 2]]).metrics


def test_metrics_equal_plain_numpy_statistics_of_the_ranks():
    result = image_text_retrieval(*captioned_world(5)).text_to_image
    rank = result.per_query["rank"]
    assert result.metrics["MedR"] == np.median(rank)
    assert result.metrics["MeanR"] == pytest.approx(np.mean(rank))
    assert result.metrics["R@5"] == pytest.approx(np.mean(rank <= 5))


def test_intervals_are_those_of_resampling_by_hand():
    result = image_text_retrieval(*captioned_world(6, images=9), bootstrap=50, seed=3)
    drawn = np.random.default_rng(3).integers(9, size=(50, 9))  # the images of each resample
    ranks = [
        np.concatenate([result.text_to_image.per_query["rank"][result.image_of_text == i] for i in d]) for d in drawn
    ]
    for name, statistic in (
        ("t2i/MedR", np.median),
        ("t2i/MeanR", np.mean),
        ("t2i/R@5", lambda rank: np.mean(rank <= 5)),
    ):
        expected = np.quantile([statistic(rank) for rank in ranks], [0.025, 0.975])
        assert result.intervals[name] == pytest.approx(tuple(expected))


def test_intervals_hold_the_metric_and_follow_the_seed():
    world = captioned_world(7)
    result = image_text_retrieval(*world, seed=1)
    assert result.intervals.keys() == result.metrics.keys()
    assert all(low <= result.metrics[name] <= high for name, (low, high) in result.intervals.items())
    assert result.intervals == image_text_retrieval(*world, seed=1).intervals
    assert result.intervals != image_text_retrieval(*world, seed=2).intervals


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        kept = generator.normal(size=200) < 0  # a system that ranks first with probability one half
        scores = np.where(kept[:, None], [[1.0, 0.0]], [[0.0, 1.0]])
        low, high = metrics_of(scores, torch.zeros(200, dtype=torch.long)).intervals(samples=300, seed=seed)["R@1"]
        covered += low <= 0.5 <= high
    assert 50 <= covered <= 60


def test_groups_widen_the_intervals_of_queries_that_are_not_independent():
    ranks_of_groups = np.random.default_rng(0).integers(2, size=40)
    scores = np.where(ranks_of_groups[:, None], [[1.0, 0.0]], [[0.0, 1.0]]).repeat(10, axis=0)
    result = metrics_of(scores, torch.zeros(400, dtype=torch.long))
    alone, grouped = result.intervals()["R@1"], result.intervals(groups=np.arange(40).repeat(10))["R@1"]
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])


def test_a_system_paired_with_itself_differs_by_nothing():
    result = image_text_retrieval(*captioned_world(8))
    paired = paired_bootstrap(result, result)
    assert (paired.difference, paired.low, paired.high, paired.p) == (0, 0, 0, 1)


def test_a_better_system_is_told_from_a_worse_one():
    image_ND, text_MD, image_M = captioned_world(9)
    worse_MD = text_MD + 2 * torch.randn(text_MD.shape, generator=torch.Generator().manual_seed(0))
    better, worse = (image_text_retrieval(image_ND, texts, image_M) for texts in (text_MD, worse_MD))
    paired = paired_bootstrap(better, worse, key="t2i/R@10")
    assert 0 < paired.low < paired.difference < paired.high
    assert paired.difference == pytest.approx(better.metrics["t2i/R@10"] - worse.metrics["t2i/R@10"])
    assert paired.p < 0.01
    assert paired_bootstrap(worse, better, key="t2i/R@10").difference == -paired.difference


def retrieval_of(images: int, texts: int) -> ImageTextResult:
    return image_text_retrieval(torch.eye(images), torch.ones(texts, images), torch.arange(texts) % images)


ONE_3, TWO_3 = torch.ones(1, 3), torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: retrieval_metrics(torch.ones(0, 3), TWO_3, []),
            r"queries must be embeddings .* got the shape \(0, 3\)",
        ),
        (lambda: retrieval_metrics(torch.ones(3), TWO_3, [[0]]), r"queries must be embeddings .* got the shape \(3,\)"),
        (
            lambda: retrieval_metrics(ONE_3, torch.ones(2, 4), [[0]]),
            "queries and gallery must have one width; got 3 and 4",
        ),
        (lambda: retrieval_metrics(ONE_3, TWO_3, [[2]]), "positives must be indices from 0 to 1; got 2"),
        (lambda: retrieval_metrics(TWO_3, TWO_3, [[0], []]), r"1 of 2 queries have no positive \(first: 1\)"),
        (lambda: retrieval_metrics(TWO_3, TWO_3, [[0]]), "each of 2 queries; got 1"),
        (lambda: retrieval_metrics(ONE_3, torch.full((2, 3), torch.nan), [[0]]), r"gallery hold NaN .*row 0"),
        (lambda: retrieval_metrics(ONE_3, TWO_3, [[0]], ties="random"), "ties must be one of mean, .* got 'random'"),
        (lambda: retrieval_metrics(ONE_3, TWO_3, [[0]], ks=(0,)), r"ks must be whole numbers .* got \(0,\)"),
        (lambda: retrieval_metrics(ONE_3, TWO_3, [[0]], tile=0), "tile must be at least 1; got 0"),
        (lambda: image_text_retrieval(TWO_3, TWO_3, torch.tensor([0, 0])), r"1 of 2 images have no text \(first: 1\)"),
        (
            lambda: image_text_retrieval(ONE_3, TWO_3, torch.tensor([0])),
            r"each of 2 texts, \(2,\); got the shape \(1,\)",
        ),
        (
            lambda: image_text_retrieval(ONE_3, ONE_3, torch.tensor([1])),
            "text_to_image must be indices from 0 to 0; got 1",
        ),
        (lambda: retrieval_metrics(ONE_3, TWO_3, [[0]]).intervals(samples=0), "at least one sample; got 0"),
        (lambda: paired_bootstrap(retrieval_of(2, 4), retrieval_of(2, 6)), "same images and captions; got 4 and 6"),
        (
            lambda: paired_bootstrap(retrieval_of(2, 4), retrieval_of(2, 4), key="rsumm"),
            "no metric 'rsumm' in both results; known: i2t/MRR@10",
        ),
    ],
)
def test_bad_input_says_what_was_given_and_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
