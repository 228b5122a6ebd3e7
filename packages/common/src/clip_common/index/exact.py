"""Exact search: the similarity of every row to a query, and the k most similar rows.

N rows in several matrices (the parts), D their width, d the width that is compared, Q queries.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

TILE_SCORES = 2**24
"""Largest number of similarities in memory; further queries are searched afterwards."""
SHORTEST = 1e-12
"""Prefixes shorter than this are not scaled to unit length, as in `torch.nn.functional.normalize`."""

Ranking = tuple[list[int], list[float]]
"""Rows, best first, and their similarities."""


def find_nearest(
    parts: Sequence[Tensor],
    query_QD: Tensor,
    k: int,
    *,
    deleted: Tensor,
    lengths_N: Tensor | None = None,
    dim: int | None = None,
) -> list[Ranking]:
    """Return the k rows most similar to each query, best first; of equally similar rows the earlier one first.

    The parts are not copied: only the N similarities of a query are.

    Args:
        parts: Matrices of width D, float32; rows are counted through all of them.
        query_QD: (Q, D) float32, finite.
        k: Rows to return, at most as many as are not deleted.
        deleted: int64, the rows to leave out.
        lengths_N: What `measure_prefixes` returned for `dim`.
        dim: Compare the first `dim` numbers of each vector by their cosine, not whole vectors by their inner product.

    Returns:
        For each query its rows and their similarities.
    """
    count = sum(len(part) for part in parts)
    k = min(k, count - len(deleted))
    if k == 0:
        return [([], []) for _ in query_QD]
    if dim is not None:
        parts, query_QD = [part[:, :dim] for part in parts], functional.normalize(query_QD[:, :dim], dim=1)
    tile = max(1, TILE_SCORES // count)
    return [
        _best(similarity_N, k)
        for query_TD in query_QD.split(tile)
        for similarity_N in _similarities(parts, query_TD, deleted, lengths_N)
    ]


def measure_prefixes(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Return the (N,) lengths of the first `dim` numbers of each row."""
    lengths = [torch.linalg.vector_norm(part[:, :dim], dim=1) for part in parts]
    return torch.cat(lengths).clamp_min(SHORTEST)


def check_query(query_QD: Tensor, k: int, *, width: int, dim: int | None = None) -> None:
    """Raise ValueError for queries that cannot be searched: another width, NaN, k below 1, a `dim` outside 1 to D."""
    if k < 1:
        raise ValueError(f"k={k}: expected the number of items to return, 1 or more")
    if query_QD.ndim != 2 or query_QD.shape[1] != width:
        raise ValueError(f"queries of shape {tuple(query_QD.shape)}: expected (Q, {width}), the width of the vectors")
    if not bool(query_QD.isfinite().all()):
        raise ValueError("a query holds a NaN or an infinity: check the output of the model for it")
    if dim is not None and not 1 <= dim <= width:
        raise ValueError(f"dim={dim}: expected 1 to {width}, the width of the vectors")


def _similarities(parts: Sequence[Tensor], query_TD: Tensor, deleted: Tensor, lengths_N: Tensor | None) -> Tensor:
    similarity_TN = query_TD.new_empty(len(query_TD), sum(len(part) for part in parts))
    start = 0
    for part in parts:
        block_TS = similarity_TN[:, start : start + len(part)]
        if len(query_TD) == 1:  # bound by memory bandwidth; a matrix product takes longer
            torch.mv(part, query_TD[0], out=block_TS[0])
        else:
            torch.mm(query_TD, part.T, out=block_TS)
        start += len(part)
    if lengths_N is not None:
        similarity_TN /= lengths_N
    return similarity_TN.index_fill_(1, deleted, -torch.inf)


def _best(similarity_N: Tensor, k: int) -> Ranking:
    last = similarity_N.topk(k).values[-1]
    rows_C = (similarity_N >= last).nonzero()[:, 0]  # more than k if several share the last place
    best = similarity_N[rows_C].sort(descending=True, stable=True)
    return rows_C[best.indices[:k]].tolist(), best.values[:k].tolist()
