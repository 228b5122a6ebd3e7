"""Search in the rows of an index: exact, or a first pass over short codes and a rerank of the best at full width.

N rows, D their width, Q queries.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from clip_common.index.distinct import drop_near_duplicates
from clip_common.index.exact import Ranking, check_query, find_nearest, measure_prefixes
from clip_common.index.first import FIRST, First
from clip_common.index.rerank import rerank_candidates
from clip_common.index.rows import View


@dataclass(frozen=True)
class Neighbour:
    """One result of a search.

    Attributes:
        id: The item.
        similarity: Its similarity to the query.
        payload: The JSON value stored with it.
        duplicates: Number of its near-duplicates that were left out (`unique`), up to the last result.
    """

    id: str
    similarity: float
    payload: Any = None
    duplicates: int = 0


@dataclass(frozen=True)
class SearchPlan:
    """How to search; fields as for `VectorIndex.nearest`."""

    k: int
    dim: int | None = None
    candidates: int | None = None
    first: First = "float32"
    unique: float | None = None

    def check(self, query_QD: Tensor, *, width: int) -> None:
        """Raise ValueError for queries or settings that cannot be searched."""
        check_query(query_QD, self.k, width=width, dim=self.dim)
        if self.first not in FIRST:
            raise ValueError(f"first={self.first!r}: expected one of {', '.join(FIRST)}")
        if self.first != "float32" and self.candidates is None:
            raise ValueError(f"first={self.first!r} without candidates: give the number of items to rerank")
        if self.candidates is not None and self.candidates < self.k:
            raise ValueError(f"candidates={self.candidates} for k={self.k}: expected at least k")
        if self.unique is not None and not 0 < self.unique <= 1:
            raise ValueError(f"unique={self.unique}: expected the smallest cosine of near-duplicates, above 0 up to 1")


def search(view: View, query_QD: Tensor, plan: SearchPlan) -> list[list[Neighbour]]:
    """Return the results for each query; the plan must have been checked."""
    if plan.unique is not None:
        return _describe(view, *_rank_distinct(view, query_QD, plan, threshold=plan.unique))
    rankings = _rank(view, query_QD, plan)
    return _describe(view, rankings, [[0] * len(rows) for rows, _ in rankings])


def _rank(view: View, query_QD: Tensor, plan: SearchPlan) -> list[Ranking]:
    """Return the ranking of at most k rows for each query."""
    if plan.candidates is not None:
        dim, candidates = plan.dim or query_QD.shape[1], min(plan.candidates, len(view))
        return list(rerank_candidates(view, query_QD, plan.k, dim=dim, candidates=candidates, first=plan.first))
    if plan.dim is not None and plan.dim not in view.lengths:
        view.lengths[plan.dim] = measure_prefixes(view.parts, plan.dim)
    lengths_N = None if plan.dim is None else view.lengths[plan.dim]
    return find_nearest(view.parts, query_QD, plan.k, deleted=view.deleted, lengths_N=lengths_N, dim=plan.dim)


def _rank_distinct(
    view: View, query_QD: Tensor, plan: SearchPlan, *, threshold: float
) -> tuple[list[Ranking], list[list[int]]]:
    """Return rankings of k rows without near-duplicates, and for each row how many of its own were left out.

    A query with fewer than k distinct rows is searched again for four times as many, until all rows were seen.
    """
    rankings: list[Ranking] = [([], []) for _ in query_QD]
    duplicates: list[list[int]] = [[] for _ in query_QD]
    pending, wanted = list(range(len(query_QD))), 2 * plan.k
    while pending:
        candidates = None if plan.candidates is None else max(plan.candidates, wanted)
        found = _rank(view, query_QD[pending], replace(plan, k=wanted, candidates=candidates))
        for query, (rows, similarities) in zip(pending, found, strict=True):
            kept = drop_near_duplicates(view.vectors(rows), threshold, k=plan.k)
            rankings[query] = [rows[place] for place in kept], [similarities[place] for place in kept]
            duplicates[query] = list(kept.values())
        pending = [query for query in pending if len(rankings[query][0]) < plan.k and wanted < len(view)]
        wanted *= 4
    return rankings, duplicates


def _describe(view: View, rankings: Sequence[Ranking], duplicates: Sequence[Sequence[int]]) -> list[list[Neighbour]]:
    ids, payloads = view.read_texts([row for rows, _ in rankings for row in rows], "ids", "payloads")
    texts = zip(ids, payloads, strict=True)
    return [
        [
            Neighbour(id, similarity, parse_payload(text), count)
            for similarity, count, (id, text) in zip(similarities, counts, texts, strict=False)
        ]
        for (_, similarities), counts in zip(rankings, duplicates, strict=True)
    ]


def parse_payload(text: str) -> Any:
    """Return a stored payload; None for an item without one."""
    return json.loads(text) if text else None
