"""Retrieval metrics from embeddings: recall at K, ranks, MRR and mAP with intervals, without a matrix of all scores.

R@K of a query is 1 when any of its positives is among the first K; MedR and MeanR are the median and mean rank of the
best positive; MRR@10 is its mean 1/rank, 0 beyond 10; AP@10 = 1/min(R, 10) · Σ_{k≤10} P@k · rel_k with R positives in
all; rsum is 100 · the sum of all recalls of both directions (0 to 600 with the usual three). All but rsum, MedR and
MeanR lie in [0, 1].
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from clip_common.arrays import as_tensor
from clip_common.metrics.bootstrap import (
    Floats,
    Paired,
    concatenate_chunks,
    draw_resamples,
    paired_difference,
    percentile_intervals,
    weighted_metrics,
)
from clip_common.metrics.ranking import DEPTH, QueryRanks, Ties, rank_both_ways, rank_one_way

T = TypeVar("T", float, Floats)


@dataclass(frozen=True)
class RetrievalResult:
    """One direction of retrieval.

    Attributes:
        per_query: for each query "rank" (of its best positive, 1 = top), "R@1"… (0 or 1, or a share if items tied
            with the positive are on both sides of rank K), "MRR@10" and "mAP@10" (its own 1/rank and AP). Each metric
            is the mean of the column of its name; "MedR" and "MeanR" are the median and mean of "rank".
    """

    per_query: dict[str, Floats]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """ "R@1", "R@5", "R@10" (or at the given ks), "MRR@10", "mAP@10", "MedR", "MeanR"."""
        every_query_once = np.ones((1, len(self.per_query["rank"])), dtype=np.int64)
        return {name: float(value) for name, (value,) in weighted_metrics(self.per_query, every_query_once).items()}

    def intervals(
        self, samples: int = 1000, seed: int = 0, groups: NDArray[np.int64] | None = None
    ) -> dict[str, tuple[float, float]]:
        """Bootstrap 95 % percentile interval (low, high) of each metric.

        Args:
            samples: number of resamples.
            seed: of the draw; the same seed gives the same intervals.
            groups: (N,) group of each query, 0 … G-1, drawn together (captions of one image are not independent); by
                default each query is its own group.
        """
        if groups is None:
            groups = np.arange(len(self.per_query["rank"]))
        counts = draw_resamples(int(groups.max()) + 1, samples=samples, seed=seed, width=len(groups))
        chunks = (weighted_metrics(self.per_query, counts_SG[:, groups]) for counts_SG in counts)
        return percentile_intervals(concatenate_chunks(chunks))


@dataclass(frozen=True)
class ImageTextResult:
    """Both directions of image-text retrieval.

    Attributes:
        image_to_text: images as queries; a hit is any caption of the image.
        text_to_image: captions as queries, in the order they were given.
        image_of_text: (M,) image of each caption.
        bootstrap: resamples behind `intervals`.
        seed: of these resamples.
    """

    image_to_text: RetrievalResult
    text_to_image: RetrievalResult
    image_of_text: NDArray[np.int64]
    bootstrap: int
    seed: int

    @cached_property
    def metrics(self) -> dict[str, float]:
        """ "i2t/R@1", "t2i/MedR", … (the keys of `RetrievalResult.metrics` for each direction) and "rsum"."""
        return _both_ways(self.image_to_text.metrics, self.text_to_image.metrics)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Bootstrap 95 % interval (low, high) of each metric over images; an image is drawn with all its captions."""
        return percentile_intervals(self.resampled(samples=self.bootstrap, seed=self.seed))

    def resampled(self, *, samples: int, seed: int) -> dict[str, Floats]:
        """Compute each metric on each of `samples` resamples of the images."""
        images, texts = len(self.image_to_text.per_query["rank"]), len(self.image_of_text)

        def chunks() -> Iterator[dict[str, Floats]]:
            for counts_SN in draw_resamples(images, samples=samples, seed=seed, width=texts):
                yield _both_ways(
                    weighted_metrics(self.image_to_text.per_query, counts_SN),
                    weighted_metrics(self.text_to_image.per_query, counts_SN[:, self.image_of_text]),
                )

        return concatenate_chunks(chunks())


def retrieval_metrics(
    queries_ND: Tensor | ArrayLike,
    gallery_MD: Tensor | ArrayLike,
    positives: Tensor | ArrayLike | Sequence[Sequence[int]],
    *,
    ks: Sequence[int] = (1, 5, 10),
    ties: Ties = "mean",
    tile: int | None = None,
    normalise: bool = True,
) -> RetrievalResult:
    """Rank a gallery for each query and measure how high its positives rank.

    Cost: one matrix product, read about twice; O(tile · M) memory for any N.

    Args:
        queries_ND: (N, D) embeddings of any float type; compared in float32, on their device. Arrays and nested lists
            are taken too.
        gallery_MD: (M, D) embeddings.
        positives: (N,) index of the one positive of each query, or for each query the indices of all its positives.
        ks: the K of R@K.
        ties: rank of negatives that tie with a positive, that is, score within 1e-6 of it (cosine; for dot products
            1e-6 times the lengths of the query and the positive). "optimistic": behind it; "pessimistic": ahead of it;
            "mean": every order of a tie is equally likely, however many positives are in it, and metrics are means over
            the orders, so a collapsed model scores at chance.
        tile: queries compared at a time; by default about 8 M scores, of all threads together.
        normalise: cosine similarity (default) or plain dot products.

    Raises:
        ValueError: empty, not finite or mismatched embeddings, a query without a positive, an index outside the
            gallery.

    Example:
        >>> result = retrieval_metrics(text_MD, image_ND, positives=image_of_text)
        >>> result.metrics["R@1"], result.intervals()["R@1"]
    """
    _check(ks=ks, ties=ties, tile=tile)
    queries_ND, gallery_MD = as_tensor(queries_ND, "queries"), as_tensor(gallery_MD, "gallery")
    with torch.no_grad(), torch.autocast(queries_ND.device.type, enabled=False):
        queries_ND = _scaled(queries_ND, name="queries")  # its length changes no ranking
        gallery_MD = _scaled(gallery_MD, name="gallery", each=normalise)
        _check_widths(queries=queries_ND, gallery=gallery_MD)
        query_E, item_E = _pairs(positives, queries=len(queries_ND), items=len(gallery_MD))
        device = queries_ND.device
        ranks = rank_one_way(
            queries_ND, gallery_MD, query_E=query_E.to(device), item_E=item_E.to(device), ties=ties, tile=tile
        )
    return _result(ranks, ks=ks)


def image_text_retrieval(
    image_ND: Tensor | ArrayLike,
    text_MD: Tensor | ArrayLike,
    text_to_image_M: Tensor | ArrayLike,
    *,
    ks: Sequence[int] = (1, 5, 10),
    ties: Ties = "mean",
    tile: int | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> ImageTextResult:
    """Measure image→text and text→image retrieval by cosine similarity, computing every score once for both.

    Equals `retrieval_metrics` run in each direction, at half the cost.

    Args:
        image_ND: (N, D) embeddings of any float type; compared in float32, on their device. Arrays and nested lists
            are taken too.
        text_MD: (M, D) embeddings of the captions, in any order.
        text_to_image_M: (M,) image of each caption; every image has at least one.
        ks: the K of R@K.
        ties: as in `retrieval_metrics`.
        tile: images compared at a time; by default, on a CPU, up to 384 with 4,096 captions by each thread, and on a
            GPU as many as give, with their captions, about 8 M scores.
        bootstrap: resamples behind `intervals`, which are computed when first asked for.
        seed: of these resamples.

    Raises:
        ValueError: empty, not finite or mismatched embeddings, an image without a caption, an image index out of range.

    Example:
        >>> result = image_text_retrieval(image_ND, text_MD, text_to_image_M)
        >>> result.metrics["rsum"], result.intervals["rsum"]
    """
    _check(ks=ks, ties=ties, tile=tile)
    image_ND, text_MD = as_tensor(image_ND, "images"), as_tensor(text_MD, "texts")
    text_to_image_M = as_tensor(text_to_image_M, "text_to_image")
    with torch.no_grad(), torch.autocast(image_ND.device.type, enabled=False):
        image_ND = _scaled(image_ND, name="images")
        text_MD = _scaled(text_MD, name="texts")
        _check_widths(images=image_ND, texts=text_MD)
        image_E, text_E = _images_and_texts(text_to_image_M, images=len(image_ND), texts=len(text_MD))
        device = image_ND.device
        if (text_E.diff() < 0).any():
            text_MD = text_MD[text_E.to(device)]
        of_images, of_texts = rank_both_ways(image_ND, text_MD, image_E.to(device), ties=ties, tile=tile)
    as_given = torch.argsort(text_E)
    return ImageTextResult(
        image_to_text=_result(of_images, ks=ks),
        text_to_image=_result(of_texts.ordered(as_given), ks=ks),
        image_of_text=image_E[as_given].numpy(),
        bootstrap=bootstrap,
        seed=seed,
    )


def paired_bootstrap(
    a: ImageTextResult | Sequence[ImageTextResult],
    b: ImageTextResult | Sequence[ImageTextResult],
    key: str = "rsum",
    samples: int = 2000,
    seed: int = 0,
) -> Paired:
    """Compare two systems on the same images: both use the same resamples, so difficulty common to both cancels.

    Systems with several training runs are compared over images and runs: each resample draws images, the same for all
    runs, and runs, the same for both systems (see `bootstrap.resample_runs` for the effect of few runs).

    Args:
        a: one system: a result, or a sequence of results of several runs.
        b: the other, on the same images and captions in the same order and with as many runs; run i of both shares what
            can be shared (the seed).
        key: a key of `ImageTextResult.metrics`.
        samples: number of resamples.
        seed: of the draw.

    Raises:
        ValueError: the two were not evaluated on the same images and captions, have no metric of that name, or not the
            same number of runs.

    Example:
        >>> paired_bootstrap(ours, theirs, key="rsum")
        Paired(difference=4.1, low=1.3, high=6.8, p=0.004)
    """
    ours, theirs = ([side] if isinstance(side, ImageTextResult) else list(side) for side in (a, b))
    if len(ours) != len(theirs) or not ours:
        raise ValueError(
            f"a paired bootstrap pairs run by run; got {len(ours)} and {len(theirs)} runs: give as many of both systems"
        )
    captions = ours[0].image_of_text
    for result in (*ours, *theirs):
        if not np.array_equal(captions, result.image_of_text):
            raise ValueError(
                f"a paired bootstrap needs two results on the same images and captions; got {len(captions)} and "
                f"{len(result.image_of_text)} captions with different images: evaluate both systems on the same split"
            )
    known = set.intersection(*({*result.metrics} for result in (*ours, *theirs)))
    if key not in known:
        raise ValueError(f"no metric {key!r} in both results; known: {', '.join(sorted(known))}")
    pairs = list(zip(ours, theirs, strict=True))
    difference_RS = np.stack(
        [
            one.resampled(samples=samples, seed=seed)[key] - other.resampled(samples=samples, seed=seed)[key]
            for one, other in pairs
        ]
    )
    observed_R = [one.metrics[key] - other.metrics[key] for one, other in pairs]
    return paired_difference(observed_R, difference_RS, seed=seed)


def _result(ranks: QueryRanks, *, ks: Sequence[int]) -> RetrievalResult:
    recalls = {f"R@{k}": ranks.within_N(k) for k in ks}
    columns = {
        "rank": ranks.mean_N,
        **recalls,
        f"MRR@{DEPTH}": ranks.reciprocal_N,
        f"mAP@{DEPTH}": ranks.precision_N,
    }
    return RetrievalResult({name: column_N.numpy() for name, column_N in columns.items()})


def _both_ways(image_to_text: dict[str, T], text_to_image: dict[str, T]) -> dict[str, T]:
    recalls = [value for way in (image_to_text, text_to_image) for name, value in way.items() if name.startswith("R@")]
    return {
        **{f"i2t/{name}": value for name, value in image_to_text.items()},
        **{f"t2i/{name}": value for name, value in text_to_image.items()},
        "rsum": 100 * sum(recalls[1:], start=recalls[0]),
    }


def _scaled(embeddings_ND: Tensor, *, name: str, each: bool = True) -> Tensor:
    """Check embeddings and convert them to float32, and to length 1 if `each`."""
    if embeddings_ND.ndim != 2 or embeddings_ND.numel() == 0:
        shape = tuple(embeddings_ND.shape)
        raise ValueError(f"{name} must be embeddings (rows, width) with at least one row; got the shape {shape}")
    embeddings_ND = embeddings_ND.float()
    length_N1 = embeddings_ND.norm(dim=1, keepdim=True)
    if not length_N1.isfinite().all():
        first = int((~length_N1.isfinite()).nonzero()[0, 0])
        raise ValueError(f"{name} hold NaN or infinity (first in row {first}): check the model that embedded them")
    return embeddings_ND / length_N1.clamp(min=1e-12) if each else embeddings_ND


def _check(*, ks: Sequence[int], ties: Ties, tile: int | None) -> None:
    if ties not in get_args(Ties):
        raise ValueError(f"ties must be one of {', '.join(get_args(Ties))}; got {ties!r}")
    if len(ks) == 0 or min(ks) < 1:
        raise ValueError(f"ks must be whole numbers from 1 up; got {tuple(ks)}")
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1; got {tile}")


def _check_widths(**embeddings: Tensor) -> None:
    (one, a_ND), (other, b_MD) = embeddings.items()
    if a_ND.shape[1] != b_MD.shape[1]:
        raise ValueError(f"{one} and {other} must have one width; got {a_ND.shape[1]} and {b_MD.shape[1]}")


def _pairs(
    positives: Tensor | ArrayLike | Sequence[Sequence[int]], *, queries: int, items: int
) -> tuple[Tensor, Tensor]:
    """Return (query, positive item) pairs without repetition, ordered by query, then item."""
    several = positives if isinstance(positives, Tensor | np.ndarray) else list(cast(Iterable[Any], positives))
    if len(several) != queries:
        raise ValueError(f"positives must list the positives of each of {queries} queries; got {len(several)} entries")
    if np.ndim(several[0]) == 0:
        query_E, item_E = torch.arange(queries), as_tensor(several, "positives").cpu().long()
    else:
        found = [np.asarray(indices, dtype=np.int64).reshape(-1) for indices in several]
        query_E = torch.arange(queries).repeat_interleave(torch.tensor([len(indices) for indices in found]))
        item_E = torch.from_numpy(np.concatenate(found))
    missing_N = torch.bincount(query_E, minlength=queries) == 0
    if missing_N.any():
        first = int(missing_N.nonzero()[0])
        raise ValueError(
            f"{int(missing_N.sum())} of {queries} queries have no positive (first: {first}): leave them out"
        )
    _check_range(item_E, items=items, what="positives")
    code_E = torch.unique(query_E * items + item_E)
    return code_E // items, code_E % items


def _images_and_texts(text_to_image_M: Tensor, *, images: int, texts: int) -> tuple[Tensor, Tensor]:
    """Return the image of each text in ascending order, and the texts in that order."""
    if text_to_image_M.shape != (texts,):
        shape = tuple(text_to_image_M.shape)
        raise ValueError(
            f"text_to_image must hold the image of each of {texts} texts, ({texts},); got the shape {shape}"
        )
    image_M = text_to_image_M.cpu().long()
    _check_range(image_M, items=images, what="text_to_image")
    bare_N = torch.bincount(image_M, minlength=images) == 0
    if bare_N.any():
        first = int(bare_N.nonzero()[0])
        raise ValueError(f"{int(bare_N.sum())} of {images} images have no text (first: {first}): leave them out")
    image_E, text_E = image_M.sort(stable=True)
    return image_E, text_E


def _check_range(index_E: Tensor, *, items: int, what: str) -> None:
    outside = index_E[(index_E < 0) | (index_E >= items)]
    if len(outside):
        raise ValueError(f"{what} must be indices from 0 to {items - 1}; got {int(outside[0])}")
