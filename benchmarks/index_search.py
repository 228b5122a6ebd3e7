"""Search over 50,000 × 1024 vectors of a nested spectrum: short codes and a rerank against exact search and LanceDB.

    uv run python benchmarks/index_search.py             # some minutes on two cores
    uv run python benchmarks/index_search.py --quick     # 5,000 × 256: a smoke test

The standard deviation of dimension i is (1 + i / 8) ** -power, as in Matryoshka embeddings, whose first dimensions hold
most of the variance. Queries are stored vectors with noise. The index is on disk and memory-mapped; exact search is a
matrix product with the whole matrix in memory and `topk`; LanceDB's is its flat search, all queries in one call.

Tables: time and recall@10 for one query at a time and for many at once; peak resident memory of encoding and searching
above an open index, each arm in its own process, where "exact" maps all vectors; recall for other spectra.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _measure import PeakMemory, alternate, arm_in_own_process, report
from torch import Tensor
from torch.nn import functional

from clip_common.index import Neighbour, VectorIndex, certify

ABOUT: dict[str, Any] = {"model": "0" * 64, "model_name": "random", "collection": "nested"}
K = 10
QUERIES = 256
SINGLE = 16
"""Queries of a measurement of one query at a time."""
POWER = 0.75
SEARCHES: dict[str, dict[str, Any]] = {
    "prefix 64, rerank 200": {"dim": 64, "candidates": 200},
    "int8, rerank 100": {"candidates": 100, "first": "int8"},
    "binary, rerank 500": {"candidates": 500, "first": "binary"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "prefix 64 alone": {"dim": 64},
    "prefix 50, rerank 200": {"dim": 50, "candidates": 200},
}
EXACT = "exact"


def draw_vectors(count: int, width: int, *, power: float, seed: int) -> Tensor:
    vectors_ND = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(vectors_ND * (1 + torch.arange(width) / 8) ** -power, dim=1)


def draw_queries(vectors_ND: Tensor, *, power: float) -> Tensor:
    """Return vectors near some of the stored ones."""
    drawn = torch.randperm(len(vectors_ND), generator=torch.Generator().manual_seed(1))[:QUERIES]
    noise_QD = draw_vectors(QUERIES, vectors_ND.shape[1], power=power, seed=2)
    return functional.normalize(vectors_ND[drawn] + 0.5 * noise_QD, dim=1)


def build(folder: Path, vectors_ND: Tensor) -> VectorIndex:
    index = VectorIndex(**ABOUT, folder=folder)
    index.add([f"folder {row % 100}/photo {row:06d}.jpg" for row in range(len(vectors_ND))], vectors_ND)
    index.save()
    return VectorIndex.open(folder)


def search_exactly(vectors_ND: Tensor, query_QD: Tensor) -> Tensor:
    if len(query_QD) == 1:
        return torch.mv(vectors_ND, query_QD[0]).topk(K).indices[None]
    return (query_QD @ vectors_ND.T).topk(K, dim=1).indices


def open_lance(folder: Path, vectors_ND: Tensor) -> Callable[[Tensor], list[int]]:
    """Return LanceDB's flat search over a table of the vectors."""
    import lancedb  # here, so that the processes that measure memory do not load it
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.numpy().ravel()), vectors_ND.shape[1])
    content = pa.table({"row": pa.array(range(len(vectors_ND))), "vector": column})
    table = lancedb.connect(folder).create_table("items", content)

    def search(query_QD: Tensor) -> list[int]:
        query = query_QD[0].numpy() if len(query_QD) == 1 else query_QD.numpy()
        found = table.search(query).distance_type("dot").limit(K).select(["row", "_distance"]).to_arrow()
        rows: list[int] = found["row"].to_pylist()
        return rows

    return search


def share_found(found: list[list[Neighbour]], exact_QK: Tensor, ids: list[str]) -> float:
    shared = [
        len({hit.id for hit in hits} & {ids[row] for row in rows})
        for hits, rows in zip(found, exact_QK.tolist(), strict=True)
    ]
    return sum(shared) / exact_QK.numel()


def one_by_one(search: Callable[[Tensor], object], query_QD: Tensor) -> Callable[[], None]:
    def run() -> None:
        for query_D in query_QD[:SINGLE]:
            search(query_D[None])

    return run


def compare_times(folder: Path, count: int, width: int, *, pairs: int) -> list[dict[str, Any]]:
    vectors_ND = draw_vectors(count, width, power=POWER, seed=0)
    query_QD = draw_queries(vectors_ND, power=POWER)
    index, lance = build(folder / "index", vectors_ND), open_lance(folder / "lance", vectors_ND)
    ids, exact_QK = index.ids, search_exactly(vectors_ND, query_QD)
    assert lance(query_QD[:1]) == exact_QK[0].tolist(), "LanceDB's flat search is not exact"
    assert share_found(index.nearest_to_each(query_QD, K), exact_QK, ids) == 1.0

    def exactly(query_QD: Tensor) -> Tensor:
        return search_exactly(vectors_ND, query_QD)

    rows: list[dict[str, Any]] = []
    for name, options in SEARCHES.items():
        ours: Callable[[Tensor], Any] = partial(index.nearest_to_each, k=K, **options)
        recall = share_found(ours(query_QD), exact_QK, ids)
        for queries in (1, QUERIES):
            calls = SINGLE if queries == 1 else 1
            ours_arm, exact_arm, lance_arm = (
                one_by_one(search, query_QD) if queries == 1 else partial(search, query_QD)
                for search in (ours, exactly, lance)
            )
            exact_time = alternate(ours_arm, exact_arm, pairs=pairs, warmup=1)
            lance_time = alternate(ours_arm, lance_arm, pairs=3, warmup=1)
            rows.append(
                {
                    "search": name,
                    "queries": queries,
                    "recall@10": recall,
                    "ours ms": 1000 * exact_time.ours_s / calls,
                    "exact ms": 1000 * exact_time.theirs_s / calls,
                    "exact / ours": 1 / exact_time.ratio,
                    "LanceDB ms": 1000 * lance_time.theirs_s / calls,
                    "LanceDB / ours": 1 / lance_time.ratio,
                }
            )
    return rows


def compare_spectra(folder: Path, count: int, width: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for power in (0.5, 0.75, 1.0):
        vectors_ND = draw_vectors(count, width, power=power, seed=0)
        query_QD = draw_queries(vectors_ND, power=power)
        index = build(folder / f"power {power}", vectors_ND)
        for name, options in (SEARCHES | OTHERS).items():
            found = certify(index, query_QD, K, **options)
            interval = f"{found.low:.4f} to {found.high:.4f}"
            rows.append({"power": power, "search": name, "recall@10": found.recall, "95 %": interval})
    return rows


def measure_memory(arm: str, folder: Path, queries: int) -> float:
    """Return the peak MiB of preparing a search and searching, above libraries and an index that is open."""
    options, index = SEARCHES.get(arm, {}), VectorIndex.open(folder)
    query_QD = draw_vectors(queries, index.width, power=POWER, seed=3)
    warm = VectorIndex(**ABOUT)
    warm.add([str(row) for row in range(1000)], draw_vectors(1000, index.width, power=POWER, seed=4))
    warm.nearest_to_each(query_QD, K, **options)
    with PeakMemory() as peak:
        index.nearest_to_each(query_QD, K, **options)
    return peak.mib


def compare_memory(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for queries in (1, QUERIES):
        peaks = {
            arm: arm_in_own_process(__file__, arm, "--folder", str(folder), "--queries", str(queries))["mib"]
            for arm in (EXACT, *SEARCHES)
        }
        rows += [
            {"search": arm, "queries": queries, "peak MiB": peak, "of exact": peak / peaks[EXACT]}
            for arm, peak in peaks.items()
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter vectors, fewer repetitions")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--queries", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps({"mib": measure_memory(options.arm, options.folder, options.queries)}))
        return
    count, width = (5000, 256) if options.quick else (50_000, 1024)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        times = compare_times(folder, count, width, pairs=3 if options.quick else 9)
        memory = compare_memory(folder / "index")
        spectra = compare_spectra(folder, count, width)
    what = f"{count:,} × {width}, top {K}"
    report("index_search", times, note=f"{what}; medians of alternated pairs; bars: exact / ours 3, LanceDB / ours 10")
    report("index_search_memory", memory, note=f"{what}; pages of the mapped file count, which the system may drop")
    report("index_search_spectra", spectra, note=f"{what}; prefixes of any width, without training")


if __name__ == "__main__":
    main()
