"""Ranks of positives by counting over tiles: without a full similarity matrix, and without sorting.

The rank of a positive is one more than the number of items ahead of it, so counting the scores above it is enough.
The last bits of a score depend on the shape of the product that computes it, which causes two errors. A positive scored
by another product can be counted ahead of itself; so positives are read from the tile that is counted, and then hidden
in it. Of two equal captions one comes out ahead at random, depending on the tile size; so scores within `TIE` of each
other count as tied, which is wider than this noise and narrower than any meaningful difference. The noise scales with
the lengths of both vectors; so for items not of length 1, a tie is within `TIE` times the length of the positive.

Shapes: N queries (or images), M items (or texts), D width, E pairs of a query and a positive, P positives of one query
(best first), T × U one tile of scores, C comparisons that define "ahead".
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Ties = Literal["mean", "optimistic", "pessimistic"]

DEPTH = 10  # how far down mAP@10 and MRR@10 look
TIE = 2.0**-20  # 1e-6: cosines this close are equal; shapes of the product alone move one by up to 6e-7
BLOCK = 32  # neighbouring scores of a row that enter its shortlist together
TILE_SCORES = 1 << 23  # scores in a tile by default: 32 MiB, large enough for the matrix product to run at full speed
# What counts as ahead of a positive, from fewest to most: a comparison with its score, shifted by this many margins.
COMPARISONS: dict[Ties, list[tuple[Callable[..., Tensor], int]]] = {
    "optimistic": [(torch.gt, 1)],
    "mean": [(torch.gt, 1), (torch.ge, -1)],
    "pessimistic": [(torch.ge, -1)],
}


@dataclass(frozen=True)
class QueryRanks:
    """Ranks of each query in one direction of retrieval, float64 on the CPU.

    Attributes:
        best_N, worst_N: rank of the best positive, 1 = top, ahead of everything it ties with, and behind it. They
            differ only for `ties="mean"`, where every rank between them is equally likely.
        precision_N: average precision within the first 10, AP@10 = 1/min(R, 10) · Σ_{k≤10} P@k · rel_k for R positives.
    """

    best_N: Tensor
    worst_N: Tensor
    precision_N: Tensor

    @property
    def mean_N(self) -> Tensor:
        """Mean rank of the best positive."""
        return (self.best_N + self.worst_N) / 2

    def within_N(self, k: int) -> Tensor:
        """Return the share of possible ranks that are k or better."""
        return ((k + 1 - self.best_N) / (self.worst_N + 1 - self.best_N)).clamp(0, 1)

    def ordered(self, order_N: Tensor) -> "QueryRanks":
        """Return the ranks with queries in another order."""
        return QueryRanks(self.best_N[order_N], self.worst_N[order_N], self.precision_N[order_N])

    @property
    def reciprocal_N(self) -> Tensor:
        """Mean of 1/rank over possible ranks, 0 beyond `DEPTH`."""
        return _mean_reciprocal(self.best_N, self.worst_N)


def rank_one_way(
    queries_ND: Tensor,
    gallery_MD: Tensor,
    *,
    query_E: Tensor,
    item_E: Tensor,
    ties: Ties,
    tile: int | None,
) -> QueryRanks:
    """Rank the positives of each query against the whole gallery, `tile` queries at a time.

    Args:
        queries_ND: float32 embeddings of length 1.
        gallery_MD: float32 embeddings of any length.
        query_E: query of each (query, positive item) pair; ascending, every query at least once.
        item_E: item of each pair.
        ties: as in `retrieval_metrics`.
        tile: queries in a tile; by default about 8 M scores' worth.
    """
    positives_N = torch.bincount(query_E, minlength=len(queries_ND))
    margin_E = TIE * gallery_MD[item_E].norm(dim=1)
    tile = tile or max(1, TILE_SCORES // len(gallery_MD))
    done = []
    for rows, pairs in _tiles(positives_N, tile=tile):
        scores_TU = _scores(queries_ND[rows], gallery_MD)
        row_E, column_E = query_E[pairs] - rows.start, item_E[pairs]
        threshold_CE = _thresholds(scores_TU[row_E, column_E], margin_E[pairs], ties=ties)
        threshold_CTP = _take_positives(scores_TU, threshold_CE, row_E, column_E, positives_N[rows])
        done.append(_ranks(_ahead_of_rows(scores_TU, threshold_CTP, ties=ties), positives_N[rows]))
    return _joined(done)


def rank_both_ways(
    image_ND: Tensor, text_MD: Tensor, text_to_image_M: Tensor, *, ties: Ties, tile: int | None
) -> tuple[QueryRanks, QueryRanks]:
    """Rank the texts for each image and the images for each text, computing each score once for both.

    Texts are tiled along with their images, so the diagonal tiles hold all positives. These tiles come first and give
    the thresholds against which the others are counted.

    Args:
        image_ND: float32 embeddings of length 1.
        text_MD: float32 embeddings of length 1, ordered by image.
        text_to_image_M: image of each text; ascending, every image at least once.
        ties: as in `retrieval_metrics`.
        tile: images in a tile; by default, with their texts, about 8 M scores' worth.

    Returns:
        Ranks for the N images as queries, ranks for the M texts as queries.
    """
    texts_N = torch.bincount(text_to_image_M, minlength=len(image_ND))
    tile = tile or max(1, int((TILE_SCORES * len(image_ND) / len(text_MD)) ** 0.5))
    tiles = list(_tiles(texts_N, tile=tile))

    image_threshold, image_ahead, text_threshold, text_ahead = [], [], [], []
    for images, texts in tiles:
        scores_TU = _scores(image_ND[images], text_MD[texts])
        row_U = text_to_image_M[texts] - images.start
        column_U = torch.arange(len(row_U), device=row_U.device)
        text_threshold.append(_thresholds(scores_TU[row_U, column_U], TIE, ties=ties))
        image_threshold.append(_take_positives(scores_TU, text_threshold[-1], row_U, column_U, texts_N[images]))
        image_ahead.append(_ahead_of_rows(scores_TU, image_threshold[-1], ties=ties))
        text_ahead.append(_ahead_of_columns(scores_TU, text_threshold[-1], ties=ties))
    for a, (images, _) in enumerate(tiles):
        for b, (_, texts) in enumerate(tiles):
            if a != b:
                scores_TU = _scores(image_ND[images], text_MD[texts])
                image_ahead[a] += _ahead_of_rows(scores_TU, image_threshold[a], ties=ties)
                text_ahead[b] += _ahead_of_columns(scores_TU, text_threshold[b], ties=ties)

    image_ranks = [
        _ranks(ahead_CTP, texts_N[images]) for ahead_CTP, (images, _) in zip(image_ahead, tiles, strict=True)
    ]
    return _joined(image_ranks), _ranks(torch.cat(text_ahead, dim=1)[:, :, None], torch.ones_like(text_to_image_M))


def _tiles(positives_N: Tensor, *, tile: int) -> Iterator[tuple[slice, slice]]:
    """Cut the queries into tiles: (queries, their pairs), for pairs ordered by query."""
    ends = [0, *positives_N.cumsum(0).tolist()]
    for start in range(0, len(positives_N), tile):
        stop = min(start + tile, len(positives_N))
        yield slice(start, stop), slice(ends[start], ends[stop])


def _scores(rows_TD: Tensor, columns_UD: Tensor) -> Tensor:
    """Compute one tile of scores, padded to whole blocks with columns of -inf, which are ahead of nothing."""
    width = len(columns_UD)
    scores_TU = rows_TD.new_empty(len(rows_TD), -(-width // BLOCK) * BLOCK)
    torch.mm(rows_TD, columns_UD.T, out=scores_TU[:, :width])
    scores_TU[:, width:] = -torch.inf
    return scores_TU


def _thresholds(score_E: Tensor, margin: Tensor | float, *, ties: Ties) -> Tensor:
    """Return the threshold of each comparison for positives with these scores: (C, E)."""
    return torch.stack([score_E + moved * margin for _, moved in COMPARISONS[ties]])


def _take_positives(
    scores_TU: Tensor, threshold_CE: Tensor, row_E: Tensor, column_E: Tensor, positives_T: Tensor
) -> Tensor:
    """Hide the positives in a tile (-inf), and sort their thresholds.

    Returns:
        (C, T, P) thresholds of each row's best positives, best first: at most `DEPTH` of them, since a worse one can
        be neither first nor within the first ten. Rows with fewer are filled with +inf, which nothing is ahead of.
    """
    slot_E = torch.arange(len(row_E), device=row_E.device) - (positives_T.cumsum(0) - positives_T)[row_E]
    threshold_CTP = scores_TU.new_full((len(threshold_CE), len(scores_TU), int(positives_T.max())), -torch.inf)
    threshold_CTP[:, row_E, slot_E] = threshold_CE
    scores_TU[row_E, column_E] = -torch.inf
    best_CTP = threshold_CTP.topk(min(DEPTH, threshold_CTP.shape[2]), dim=2).values
    return best_CTP.masked_fill_(best_CTP == -torch.inf, torch.inf)


def _ahead_of_rows(scores_TU: Tensor, threshold_CTP: Tensor, *, ties: Ties) -> Tensor:
    """Count the scores of each row ahead of its thresholds: (C, T, P) float64.

    Counts are exact for the first positive, and wherever their mean is below `DEPTH`; other means are `DEPTH` or more.
    Only each row's shortlist is read P times. If a score at or above a threshold is missing from it, then all 2·DEPTH
    blocks of the shortlist hold such a score too, and counting each as at least half gives `DEPTH`. So a count below
    `DEPTH` has missed nothing.
    """
    short_TV = _shortlist(scores_TU)
    ahead_CTP = torch.stack([_ahead(short_TV, threshold_CT, ties=ties) for threshold_CT in threshold_CTP.unbind(2)], 2)
    far_T = ahead_CTP[:, :, 0].mean(0) >= DEPTH
    ahead_CTP[:, far_T, 0] = _ahead(scores_TU[far_T], threshold_CTP[:, far_T, 0], ties=ties)
    return ahead_CTP


def _ahead(scores_TV: Tensor, threshold_CT: Tensor, *, ties: Ties) -> Tensor:
    """Count the scores of each row ahead of its one positive: (C, T) float64, exact."""
    ahead_CT = torch.zeros_like(threshold_CT, dtype=torch.float64)
    into_floats_TV = torch.empty_like(scores_TV)  # floats sum along rows several times faster than booleans
    for (compare, _), threshold_T, ahead_T in zip(COMPARISONS[ties], threshold_CT, ahead_CT, strict=True):
        ahead_T += compare(scores_TV, threshold_T[:, None], out=into_floats_TV).sum(1)
    return ahead_CT


def _ahead_of_columns(scores_TU: Tensor, threshold_CU: Tensor, *, ties: Ties) -> Tensor:
    """Count the scores of each column ahead of its one positive: (C, U) float64, exact."""
    ahead_CU = torch.zeros_like(threshold_CU, dtype=torch.float64)
    for (compare, _), threshold_U, ahead_U in zip(COMPARISONS[ties], threshold_CU, ahead_CU, strict=True):
        for part in scores_TU[:, : len(threshold_U)].split(255):  # a byte counts to 255, and bytes sum fastest
            ahead_U += compare(part, threshold_U).view(torch.uint8).sum(0, dtype=torch.uint8)
    return ahead_CU


def _shortlist(scores_TU: Tensor) -> Tensor:
    """Return the 2·DEPTH blocks of each row with the highest maxima, side by side."""
    blocks_TKB = scores_TU.unflatten(1, (-1, BLOCK))
    rows, blocks = blocks_TKB.shape[:2]
    if blocks <= 4 * DEPTH:  # nothing to save
        return scores_TU
    best_TK = blocks_TKB.amax(2).topk(2 * DEPTH, dim=1, sorted=False).indices
    best_TK += torch.arange(rows, device=best_TK.device)[:, None] * blocks
    return blocks_TKB.flatten(0, 1).index_select(0, best_TK.flatten()).view(rows, -1)


def _ranks(ahead_CTP: Tensor, positives_T: Tensor) -> QueryRanks:
    """Convert counts of negatives ahead to ranks; the p-th best positive also has p - 1 positives ahead."""
    order_P = torch.arange(1, ahead_CTP.shape[2] + 1, device=ahead_CTP.device)
    rank_TP = ahead_CTP.mean(0) + order_P
    best_T, worst_T = ahead_CTP[0, :, 0] + 1, ahead_CTP[-1, :, 0] + 1
    found_TP = (rank_TP <= DEPTH) & (order_P <= positives_T[:, None])
    precision_T = (found_TP * order_P / rank_TP).sum(1) / positives_T.clamp(max=DEPTH)
    precision_T = torch.where(positives_T == 1, _mean_reciprocal(best_T, worst_T), precision_T)
    return QueryRanks(best_N=best_T.cpu(), worst_N=worst_T.cpu(), precision_N=precision_T.cpu())


def _mean_reciprocal(best_N: Tensor, worst_N: Tensor) -> Tensor:
    """Compute the mean of 1/rank over the ranks from best to worst, 0 beyond `DEPTH`."""
    rank_R = torch.arange(1, DEPTH + 1, device=best_N.device)
    among_NR = (best_N[:, None] <= rank_R) & (rank_R <= worst_N[:, None])
    return (among_NR / rank_R.double()).sum(1) / (worst_N + 1 - best_N)


def _joined(parts: Sequence[QueryRanks]) -> QueryRanks:
    best, worst, precision = zip(*((part.best_N, part.worst_N, part.precision_N) for part in parts), strict=True)
    return QueryRanks(best_N=torch.cat(best), worst_N=torch.cat(worst), precision_N=torch.cat(precision))
