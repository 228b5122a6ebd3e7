"""Recall of a search by short codes or prefixes, measured against exact search, with its interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_common.index.first import First
from clip_common.index.search import Neighbour
from clip_common.index.store import VectorIndex

NORMAL_QUANTILE = 1.959964
"""Of the standard normal distribution at 0.975, for intervals of 95 %."""
ROUNDING = 1e-6
"""Similarities this close to each other are equal: two ways of computing one in float32 differ by less."""


@dataclass(frozen=True)
class Certificate:
    """Recall of a search on a sample of queries.

    Attributes:
        recall: Mean over the queries of the share of the k most similar items that the search finds.
        low: Lower end of its 95 % interval.
        high: Upper end.
        queries: Number of queries in the sample.
        k: Results of each query.
    """

    recall: float
    low: float
    high: float
    queries: int
    k: int


def certify(
    index: VectorIndex,
    query_QD: Tensor | None,
    k: int,
    *,
    dim: int | None = None,
    candidates: int | None = None,
    first: First = "float32",
    sample: int = 256,
    seed: int = 0,
) -> Certificate:
    """Measure the recall at k of a configured search against exact search by the inner product of whole vectors.

    A result counts as found if its inner product with the query reaches that of the k-th exact result, so that of equal
    items any may be returned.

    Args:
        index: Not empty; with fewer than k items, the recall is that of all of them.
        query_QD: (Q, D) queries such as those that the index will be asked; None for stored vectors, each of which is
            left out of its own results. Stored vectors tell little about queries of another modality.
        k: As for `VectorIndex.nearest`.
        dim: As for `VectorIndex.nearest`.
        candidates: As for `VectorIndex.nearest`; None for a search of prefixes without a rerank.
        first: As for `VectorIndex.nearest`.
        sample: Number of queries to draw without replacement; all, if there are no more.
        seed: Of the draw.

    Raises:
        ValueError: No queries, no items to find, or as for `VectorIndex.nearest`.
    """
    ids = index.ids
    if query_QD is None:
        drawn = _draw(len(ids), sample, seed)
        query_QD, own = index.vectors([ids[row] for row in drawn]), [ids[row] for row in drawn]
    else:
        query_QD = query_QD.detach().to("cpu", torch.float32)
        query_QD, own = query_QD[_draw(len(query_QD), sample, seed)], []
    to_find = min(k, len(ids) - bool(own))
    if not len(query_QD) or to_find < 1:
        raise ValueError(f"{len(query_QD)} queries and {len(ids)} items: nothing to find, so recall cannot be measured")
    fetched = k + bool(own)
    plan: dict[str, Any] = {"dim": dim, "candidates": candidates, "first": first}
    found = index.nearest_to_each(query_QD, fetched, **plan)
    exact = index.nearest_to_each(query_QD, fetched)
    shares: list[float] = []
    for row, query_D in enumerate(query_QD):
        results, best = (_leave_out(hits[row], own[row : row + 1])[:k] for hits in (found, exact))
        similarity_K = index.vectors([hit.id for hit in results]) @ query_D
        last = best[-1].similarity
        shares.append(int((similarity_K >= last - ROUNDING * max(1.0, abs(last))).sum()) / to_find)
    recall = sum(shares) / len(shares)
    low, high = wilson_interval(recall, len(shares))
    return Certificate(recall, low, high, queries=len(shares), k=k)


def wilson_interval(mean: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of Wilson (1927) for a mean of n independent values from 0 to 1.

    For a share of n successes this is the score interval (Brown, Cai and DasGupta 2001, equation 4). Other values from
    0 to 1 vary less than successes and failures of the same mean, so for their mean it is, if anything, too wide. A
    bootstrap would be narrower, but it has width 0 if every query of the sample finds everything, which proves little:
    256 such queries show a recall of .985 or more.
    """
    z = NORMAL_QUANTILE
    centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _draw(count: int, sample: int, seed: int) -> list[int]:
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:sample]
    rows: list[int] = drawn.sort().values.tolist()
    return rows


def _leave_out(hits: Sequence[Neighbour], own: Sequence[str]) -> list[Neighbour]:
    return [hit for hit in hits if hit.id not in own]
