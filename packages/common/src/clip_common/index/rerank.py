"""Search by a first pass over short codes and a rerank: the best candidates are compared again, at full width.

N rows in several segments, D their width, d the width of the first pass, Q queries, T of them in a tile, C candidates.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from clip_common.index.exact import Ranking
from clip_common.index.first import First, build_first_pass
from clip_common.index.rows import View
from clip_common.index.select import choose_groups, take_best

TILE_SCORES = 2**22
"""Largest number of scores of a first pass in memory; further queries are searched afterwards."""


def rerank_candidates(
    view: View, query_QD: Tensor, k: int, *, dim: int, candidates: int, first: First
) -> Iterator[Ranking]:
    """Yield the k best of the `candidates` rows that a first pass finds, for each query; ties as in exact search.

    Selection and rerank run in as many threads as torch uses: they are bound by the latency of memory.

    Args:
        view: The rows; its first passes are kept for further searches.
        query_QD: (Q, D) float32, finite.
        k: Rows to return, at most `candidates`.
        dim: d, compared by cosine in the first pass.
        candidates: C, at most as many as are not deleted.
        first: Codes of the first pass. With `float32`, candidates are read from the mapped vectors; with others from
            the file, more slowly, so that no mapped pages stay in memory.
    """
    if candidates == 0:
        yield from (([], []) for _ in query_QD)
        return
    if (first, dim) not in view.passes:
        view.passes[first, dim] = build_first_pass(view.segments, first=first, dim=dim)
    groups, tile = choose_groups(view.count, candidates), max(1, TILE_SCORES // view.count)
    padded = -(-view.count // groups) * groups
    score_TN = torch.full((min(tile, len(query_QD)), padded), -torch.inf)
    prefix_Qd = functional.normalize(query_QD[:, :dim], dim=1)

    def finish(score_TN: Tensor, query_TD: Tensor) -> Iterator[Ranking]:
        row_TC = take_best(score_TN.numpy(), candidates, groups=groups)
        return _rank(view, query_TD.numpy(), row_TC, k=k, mapped=first == "float32")

    workers = torch.get_num_threads()
    with ThreadPoolExecutor(workers) as pool:
        apply = map if 1 in (workers, len(query_QD)) else pool.map
        for query_TD, prefix_Td in zip(query_QD.split(tile), prefix_Qd.split(tile), strict=True):
            tile_TN = score_TN[: len(query_TD)]
            view.passes[first, dim].compare(prefix_Td, tile_TN[:, : view.count])
            tile_TN.index_fill_(1, view.deleted, -torch.inf)
            for rankings in apply(finish, tile_TN.chunk(workers), query_TD.chunk(workers)):
                yield from rankings


def _rank(
    view: View, query_TD: NDArray[np.float32], row_TC: NDArray[np.int64], *, k: int, mapped: bool
) -> Iterator[Ranking]:
    """Rank ascending rows by their inner products with each query; of equally similar rows the earlier one first."""
    vector_CD = np.empty((row_TC.shape[1], query_TD.shape[1]), dtype=np.float32)
    similarity_TC = np.empty(row_TC.shape, dtype=np.float32)
    for query_D, row_C, similarity_C in zip(query_TD, row_TC, similarity_TC, strict=True):
        _gather(view, row_C, vector_CD, mapped=mapped)
        np.vecdot(vector_CD, query_D, out=similarity_C)  # row by row: equal rows are equally similar to the last bit
    best_TK = np.argsort(-similarity_TC, axis=1, kind="stable")[:, :k]
    row_TK, similarity_TK = (np.take_along_axis(table, best_TK, axis=1) for table in (row_TC, similarity_TC))
    return zip(row_TK.tolist(), similarity_TK.tolist(), strict=True)


def _gather(view: View, row_C: NDArray[np.int64], vector_CD: NDArray[np.float32], *, mapped: bool) -> None:
    """Copy ascending rows of all segments into one matrix."""
    ends = np.searchsorted(row_C, [*view.starts[1:], view.count])
    begin = 0
    for segment, first_row, end in zip(view.segments, view.starts, ends.tolist(), strict=True):
        rows, out_CD = row_C[begin:end] - first_row, vector_CD[begin:end]
        if mapped:
            # "clip", because numpy copies twice to be able to undo "raise"; no row is outside
            np.take(segment.vectors_SD.numpy(), rows, axis=0, out=out_CD, mode="clip")
        else:
            segment.read(rows.tolist(), out_CD)
        begin = end
