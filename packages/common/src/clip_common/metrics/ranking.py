"""Ranks of positives by counting over tiles: without a full similarity matrix, and without sorting.

The rank of a positive is one more than the number of items ahead of it, so counting the scores above it is enough.
The last bits of a score depend on the shape of the product that computes it, which causes two errors. A positive scored
by another product can be counted ahead of itself; so positives are read from the tile that is counted, and then hidden
in it. Of two equal captions one comes out ahead at random, depending on the tile size; so scores within `TIE` of each
other count as tied, which is wider than this noise and narrower than any meaningful difference. The noise scales with
the lengths of both vectors; so for items not of length 1, a tie is within `TIE` times the length of the positive.

Positives that tie are one group: with a items ahead of it and t in it, p of them positives, every order of the t is
equally likely. Then the first positive is within the first a + m with probability 1 − C(t − p, m) / C(t, m), and the
expectations of ranks and precisions are closed forms too (McSherry and Najork, Computing Information Retrieval
Performance Measures Efficiently in the Presence of Tied Scores, 2008).

Shapes: N queries (or images), M items (or texts), D width, E pairs of a query and a positive, P positives of one query
(best first), T × U one tile of scores, C comparisons that define "ahead".
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clip_common.threads import count_workers, map_pieces

Ties = Literal["mean", "optimistic", "pessimistic"]

DEPTH = 10  # how far down mAP@10 and MRR@10 look
TIE = 2.0**-20  # 1e-6: cosines this close are equal; shapes of the product alone move one by up to 6e-7
BLOCK = 32  # neighbouring scores of a row that enter its shortlist together
TILE_SCORES = 1 << 23  # scores in a tile by default: 32 MiB, large enough for the matrix product to run at full speed
PIECE_SCORES = 1 << 21  # the least in a tile of one of several threads
PIECE_IMAGES = 512  # images in a tile of one thread: fewer are slow, and more leave too few tiles to share out
PIECE_TEXTS = 1 << 12  # other images' texts in such a tile
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
        best_N, worst_N: rank of the best positive, 1 = top, ahead of every negative it ties with, and behind them all.
            They differ only for `ties="mean"`.
        tied_N: positives in that tie, 1 or more; every order of these and of the tied negatives is equally likely.
        precision_N: average precision within the first 10, AP@10 = 1/min(R, 10) · Σ_{k≤10} P@k · rel_k for R positives.
    """

    best_N: Tensor
    worst_N: Tensor
    tied_N: Tensor
    precision_N: Tensor

    @property
    def mean_N(self) -> Tensor:
        """Mean rank of the first positive: the first of p in random order among t is at (t + 1) / (p + 1)."""
        return self.best_N - 1 + (self.worst_N - self.best_N + self.tied_N + 1) / (self.tied_N + 1)

    def within_N(self, k: int) -> Tensor:
        """Return the share of orders in which a positive is among the first k."""
        ahead_N, negatives_N = self.best_N - 1, self.worst_N - self.best_N
        missed_N = torch.ones_like(ahead_N)
        for drawn in range(min(k, int(negatives_N.max()) + 1)):
            next_N = (negatives_N - drawn).clamp(min=0) / (negatives_N + self.tied_N - drawn).clamp(min=1)
            missed_N *= torch.where(ahead_N + drawn < k, next_N, 1.0)
        return 1 - missed_N

    def ordered(self, order_N: Tensor) -> "QueryRanks":
        """Return the ranks with queries in another order."""
        return QueryRanks(self.best_N[order_N], self.worst_N[order_N], self.tied_N[order_N], self.precision_N[order_N])

    @property
    def reciprocal_N(self) -> Tensor:
        """Mean of 1/rank over the orders, 0 beyond `DEPTH`."""
        found_N = [self.within_N(k) for k in range(DEPTH + 1)]
        return sum(((found_N[k] - found_N[k - 1]) / k for k in range(1, DEPTH + 1)), start=torch.zeros_like(found_N[0]))


@dataclass(frozen=True)
class _Groups:
    """Ties among the positives of each row of a tile, best first; a slot is a positive, or a row with fewer has none.

    Attributes:
        threshold_CTP: thresholds of the first positive of each tie; +inf, which nothing is ahead of, in other slots.
        size_TP: positives in the tie that starts in this slot; 0 in other slots.
    """

    threshold_CTP: Tensor
    size_TP: Tensor


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
    device = queries_ND.device
    tile = tile or max(1, max(TILE_SCORES // count_workers(device), PIECE_SCORES) // len(gallery_MD))

    def rank(part: tuple[slice, slice]) -> QueryRanks:
        rows, pairs = part
        scores_TU = _scores(queries_ND[rows], gallery_MD)
        row_E, column_E = query_E[pairs] - rows.start, item_E[pairs]
        groups = _take_positives(scores_TU, margin_E[pairs], row_E, column_E, positives_N[rows], ties=ties)
        return _ranks(_ahead_of_rows(scores_TU, groups, ties=ties), groups.size_TP, positives_N[rows])

    return _joined(list(map_pieces(rank, _tiles(positives_N, tile=tile), device=device)))


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
        tile: images in a tile; by default, on a CPU, up to 512 with 4,096 other texts for each thread, and on a GPU as
            many as give, with their texts, about 8 M scores.

    Returns:
        Ranks for the N images as queries, ranks for the M texts as queries.
    """
    texts_N = torch.bincount(text_to_image_M, minlength=len(image_ND))
    device, beside, share = image_ND.device, 1, len(image_ND) / len(text_MD)
    if tile is None and device.type == "cpu":
        tile = max(1, min(PIECE_IMAGES, int((PIECE_SCORES * share) ** 0.5)))
        tile = math.ceil(len(image_ND) / math.ceil(len(image_ND) / tile))  # all about as large
        beside = math.ceil(PIECE_TEXTS * share / tile)
    tile = tile or max(1, int((TILE_SCORES * share) ** 0.5))
    tiles = list(_tiles(texts_N, tile=tile))

    def start(part: tuple[slice, slice]) -> tuple[_Groups, Tensor, Tensor, Tensor]:
        images, texts = part
        scores_TU = _scores(image_ND[images], text_MD[texts])
        row_U = text_to_image_M[texts] - images.start
        column_U = torch.arange(len(row_U), device=device)
        threshold_CU = _thresholds(scores_TU[row_U, column_U], TIE, ties=ties)
        margin_U = torch.full((len(row_U),), TIE, device=device)
        groups = _take_positives(scores_TU, margin_U, row_U, column_U, texts_N[images], ties=ties)
        ahead_CTP = _ahead_of_rows(scores_TU, groups, ties=ties)
        return groups, ahead_CTP, threshold_CU, _ahead_of_columns(scores_TU, threshold_CU, ties=ties)

    image_groups, image_ahead, thresholds, aheads = zip(*map_pieces(start, tiles, device=device), strict=True)
    text_threshold_CM, text_ahead_CM = torch.cat(thresholds, dim=1), torch.cat(aheads, dim=1)

    def go_on(part: tuple[int, slice]) -> tuple[Tensor, Tensor]:
        a, texts = part
        scores_TU = _scores(image_ND[tiles[a][0]], text_MD[texts])
        ahead_CTP = _ahead_of_rows(scores_TU, image_groups[a], ties=ties)
        return ahead_CTP, _ahead_of_columns(scores_TU, text_threshold_CM[:, texts], ties=ties)

    rest = list(_beside(tiles, count=beside))
    for (a, texts), (ahead_CTP, ahead_CU) in zip(rest, map_pieces(go_on, rest, device=device), strict=True):
        image_ahead[a].add_(ahead_CTP)
        text_ahead_CM[:, texts] += ahead_CU

    image_ranks = [
        _ranks(ahead_CTP, groups.size_TP, texts_N[images])
        for ahead_CTP, groups, (images, _) in zip(image_ahead, image_groups, tiles, strict=True)
    ]
    one_M = torch.ones_like(text_to_image_M)
    return _joined(image_ranks), _ranks(text_ahead_CM[:, :, None], one_M[:, None], one_M)


def _tiles(positives_N: Tensor, *, tile: int) -> Iterator[tuple[slice, slice]]:
    """Cut the queries into tiles: (queries, their pairs), for pairs ordered by query."""
    ends = [0, *positives_N.cumsum(0).tolist()]
    for start in range(0, len(positives_N), tile):
        stop = min(start + tile, len(positives_N))
        yield slice(start, stop), slice(ends[start], ends[stop])


def _beside(tiles: Sequence[tuple[slice, slice]], *, count: int) -> Iterator[tuple[int, slice]]:
    """Yield each tile's number with runs of texts of at most `count` other tiles, until it has met them all."""
    for a in range(len(tiles)):
        for first, last in ((0, a), (a + 1, len(tiles))):
            for start in range(first, last, count):
                stop = min(start + count, last)
                yield a, slice(tiles[start][1].start, tiles[stop - 1][1].stop)


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
    scores_TU: Tensor, margin_E: Tensor, row_E: Tensor, column_E: Tensor, positives_T: Tensor, *, ties: Ties
) -> _Groups:
    """Hide the positives in a tile (-inf), and group each row's best by ties.

    Only the best `DEPTH` of a row have slots, since a worse one can be neither first nor within the first ten; the size
    of a tie counts all of its positives.
    """
    slot_E = torch.arange(len(row_E), device=row_E.device) - (positives_T.cumsum(0) - positives_T)[row_E]
    score_TP = scores_TU.new_full((len(scores_TU), int(positives_T.max())), -torch.inf)
    margin_TP = torch.zeros_like(score_TP)
    score_TP[row_E, slot_E] = scores_TU[row_E, column_E]
    margin_TP[row_E, slot_E] = margin_E
    scores_TU[row_E, column_E] = -torch.inf
    best_TK, place_TK = score_TP.topk(min(DEPTH, score_TP.shape[1]), dim=1)
    threshold_CTK = _thresholds(best_TK, margin_TP.gather(1, place_TK), ties=ties)
    size_TK = torch.zeros_like(place_TK)
    start_T = torch.zeros_like(positives_T)  # slot of the next tie
    for k in range(best_TK.shape[1]):
        starts_T = (start_T == k) & (k < positives_T)
        stop_T = (score_TP >= threshold_CTK[-1, :, k, None]).sum(1) if ties == "mean" else start_T + 1
        size_TK[:, k] = torch.where(starts_T, stop_T - k, 0)
        start_T = torch.where(starts_T, stop_T, start_T)
    return _Groups(threshold_CTK.masked_fill_(size_TK == 0, torch.inf), size_TK)


def _ahead_of_rows(scores_TU: Tensor, groups: _Groups, *, ties: Ties) -> Tensor:
    """Count the scores of each row ahead of its thresholds: (C, T, P) float64.

    Counts of the first tie are exact. Of a later tie they are if its first comparison counts below `DEPTH`; else that
    count is `DEPTH` or more.
    Only each row's shortlist is read P times. If a score at or above a threshold is missing from it, then all 2·DEPTH
    blocks of the shortlist hold such a score too. So a count below 2·DEPTH has missed nothing.
    """
    short_TV = _shortlist(scores_TU)
    counts = []
    for p, threshold_CT in enumerate(groups.threshold_CTP.unbind(2)):
        ahead_CT = _ahead(short_TV, threshold_CT, ties=ties)
        if short_TV is not scores_TU:
            again_T = (ahead_CT[-1] >= 2 * DEPTH) & ((ahead_CT[0] < DEPTH) | (p == 0))
            ahead_CT[:, again_T] = _ahead(scores_TU[again_T], threshold_CT[:, again_T], ties=ties)
        counts.append(ahead_CT)
    return torch.stack(counts, dim=2)


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
        # a byte counts to 255, and bytes sum fastest
        for part in scores_TU[:, : len(threshold_U)].chunk(math.ceil(len(scores_TU) / 255)):
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


def _ranks(ahead_CTP: Tensor, size_TP: Tensor, positives_T: Tensor) -> QueryRanks:
    """Convert counts of negatives ahead of each tie to ranks and average precision.

    At rank k of a tie with a items ahead, h of them positives, the precision has the expectation
    p/t · (h + 1 + (k − a − 1) · (p − 1)/(t − 1)) / k.
    """
    best_T, worst_T = ahead_CTP[0, :, 0] + 1, ahead_CTP[-1, :, 0] + 1
    precision_T, taken_T = torch.zeros_like(best_T), torch.zeros_like(best_T)
    for found, size_T in enumerate(size_TP.unbind(1)):
        # the margins of two ties may overlap: negatives in both belong to the better one
        ahead_T, reach_T = (
            torch.maximum(count_T, taken_T) for count_T in (ahead_CTP[0, :, found], ahead_CTP[-1, :, found])
        )
        tied_T = reach_T - ahead_T + size_T
        taken_T = torch.where(size_T > 0, reach_T, taken_T)
        for rank in range(found + 1, DEPTH + 1):
            passed_T = rank - 1 - found - ahead_T
            before_T = found + 1 + passed_T * (size_T - 1) / (tied_T - 1).clamp(min=1)
            within_T = (passed_T >= 0) & (passed_T < tied_T) & (size_T > 0)
            precision_T += torch.where(within_T, size_T / tied_T.clamp(min=1) * before_T / rank, 0.0)
    precision_T /= positives_T.clamp(max=DEPTH)
    return QueryRanks(best_T.cpu(), worst_T.cpu(), size_TP[:, 0].cpu(), precision_T.cpu())


def _joined(parts: Sequence[QueryRanks]) -> QueryRanks:
    return QueryRanks(
        best_N=torch.cat([part.best_N for part in parts]),
        worst_N=torch.cat([part.worst_N for part in parts]),
        tied_N=torch.cat([part.tied_N for part in parts]),
        precision_N=torch.cat([part.precision_N for part in parts]),
    )
