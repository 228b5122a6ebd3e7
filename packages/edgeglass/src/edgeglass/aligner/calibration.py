"""Calibration of "nothing here": from queries for absent things, the similarity above which an item matches.

Shapes: Q queries, D width.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_common.errors import DataError, check_list, printable
from clip_common.reporting import Progress
from clip_common.tables import read_lines
from edgeglass.aligner.aligner import describe_query
from edgeglass.aligner.index import Index
from edgeglass.aligner.items import SUFFIXES, find_modality
from edgeglass.aligner.stores import sample_vectors
from edgeglass.aligner.thresholds import (
    Calibration,
    Threshold,
    estimate_rate,
    measure_level,
    name_threshold,
    write_calibration,
)

BACKGROUND = 512
"""Items of each modality that are stored as the background."""
ROUNDING = 1e-5
"""Added to thresholds: similarities of the same query and item differ in their last bits between searches."""


def calibrate(
    index: Index,
    *,
    absent: Sequence[Any],
    present: Sequence[Any] = (),
    target: float = 0.05,
    background: Index | None = None,
    dims: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Fit the thresholds of a model and store them in its folder; former ones are replaced.

    Each kind of query (`text`, `image+audio`, …) gets a threshold for each modality of the index and each width: the
    ceil((n + 1)(1 − target))-th smallest of the n best matches that absent queries find. The next absent query, if it
    is like those, finds a better match with a probability of at most `target` (split conformal prediction: Vovk,
    Gammerman and Shafer, 2005). The false-accept rate that is returned was measured with thresholds that were fitted to
    half of the absent queries, on the other half, both ways.

    The index should be like those that will be searched: the best of more items is more similar by chance alone. Absent
    queries should be about many different things: those about a few kinds say little about other kinds.

    Args:
        index: Holds nothing that `absent` asks for, and all that `present` asks for.
        absent: Queries for what is not in the index; each as for `Index.search`.
        present: Queries for what is in the index, to measure how many find it.
        target: Largest share of absent queries that may find a match.
        background: Index of the training set, of which at most 512 items of each modality are stored with the
            thresholds; see `measure_level`. None: similarity alone decides.
        dims: Widths; default: D and the narrower trained widths.
        progress: Called with the number of queries encoded so far, and to encode.

    Raises:
        ValueError: Too few absent queries of a kind for the target, an empty index, or a model that was not loaded from
            a folder.
    """
    check_list(absent, "absent")
    check_list(present, "present")
    aligner = index.aligner
    if aligner.folder is None:
        raise ValueError("the model was not loaded from a folder, where its thresholds are kept: save it first")
    if not 0 < target < 1:
        raise ValueError(f"target={target}: expected a share between 0 and 1, such as 0.05")
    least = 2 * math.ceil(1 / target - 1)
    total = len(absent) + len(present)
    absent_vectors = _encode(index, absent, before=0, total=total, progress=progress)
    present_vectors = _encode(index, present, before=len(absent), total=total, progress=progress)
    modalities = [modality for modality, count in index.counts.items() if count]
    if not modalities or not absent_vectors:
        raise ValueError("nothing to calibrate with: give an index with items, and queries for what it does not hold")
    for kind, vectors_QD in absent_vectors.items():
        if len(vectors_QD) < least:
            raise ValueError(
                f"{len(vectors_QD)} absent queries of kind {kind}: false accepts of {target:g} need at least {least}"
            )
    stored: dict[str, Tensor] = {}
    if background is not None:
        background.description.check_model(index.description, folder=background.folder)
        counts = background.counts
        stored = {name: sample_vectors(background.store, name, BACKGROUND) for name in modalities if counts[name]}
    thresholds: dict[str, Threshold] = {}
    for kind, absent_QD in absent_vectors.items():
        for modality in modalities:
            for dim in dims or aligner.widths:
                measure = partial(find_best, index, modality=modality, background_BD=stored.get(modality), dim=dim)
                absent_Q = measure(absent_QD)
                value, accepted_Q = fit_threshold(absent_Q, target=target)
                true_accept = None
                if kind in present_vectors:
                    true_accept = estimate_rate(measure(present_vectors[kind]) > value)
                thresholds[name_threshold(kind, modality, dim)] = Threshold(
                    value, false_accept=estimate_rate(accepted_Q), true_accept=true_accept
                )
    found = Calibration(
        model=index.description.fingerprint,
        target=target,
        items={modality: index.counts[modality] for modality in modalities},
        thresholds=thresholds,
        background=stored,
    )
    write_calibration(aligner.folder, found)
    return found


def find_best(index: Index, query_QD: Tensor, *, modality: str, background_BD: Tensor | None, dim: int) -> Tensor:
    """Return the cosine (Q,) of the item that matches each query best, minus the level of the query."""
    narrow = dim if dim < query_QD.shape[1] else None
    found = index.store.nearest(
        modality, query_QD, 1, dim=narrow, candidates=None, first="float32", unique=None, where=None
    )
    similarity_Q = torch.tensor([neighbours[0].similarity for neighbours in found])
    return similarity_Q - measure_level(query_QD, background_BD, dim=dim)


def fit_threshold(absent_Q: Tensor, *, target: float) -> tuple[float, Tensor]:
    """Return the threshold of absent queries, and which of them a threshold of the other half accepts.

    Args:
        absent_Q: Statistic of the best match of each; at least 2 · ceil(1 / target − 1) of them.
        target: Largest share that may be above the threshold.
    """
    order_Q = torch.randperm(len(absent_Q), generator=torch.Generator().manual_seed(0))
    halves = order_Q[::2], order_Q[1::2]
    accepted_Q = torch.zeros(len(absent_Q), dtype=torch.bool)
    for fitted, measured in (halves, halves[::-1]):
        accepted_Q[measured] = absent_Q[measured] > _bound(absent_Q[fitted], target)
    return _bound(absent_Q, target), accepted_Q


def _bound(absent_Q: Tensor, target: float) -> float:
    rank = math.ceil((len(absent_Q) + 1) * (1 - target) - 1e-9)
    return float(absent_Q.sort().values[rank - 1]) + ROUNDING


def read_queries(sources: Sequence[Path]) -> list[str | Path]:
    """Return the queries of files: each line of a text file, any other file itself, each image and sound of a folder.

    Raises:
        DataError: No such file, or one that cannot be read.
    """
    queries: list[str | Path] = []
    for source in sources:
        if source.is_dir():
            suffixes = [suffix for those in SUFFIXES.values() for suffix in those]
            queries += sorted(file for file in source.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
        elif not source.exists():
            raise DataError(f"{printable(source)}: no such file of queries: give a text file, an image or a sound")
        elif source.suffix.lower() == ".txt":
            queries += [line.strip() for _, line in read_lines(source)]
        else:
            queries.append(source)
    return queries


def _encode(
    index: Index, queries: Sequence[Any], *, before: int, total: int, progress: Progress | None
) -> dict[str, Tensor]:
    """Return the vectors (Q, D) of queries by their kind."""
    vectors: dict[str, list[Tensor]] = {}
    for number, query in enumerate(queries, start=before + 1):
        items = query if isinstance(query, list) else [query]
        kind = describe_query([find_modality(item) for item in items])
        vectors.setdefault(kind, []).append(index.aligner.encode_query(*items))
        if progress is not None:
            progress(number, total)
    return {kind: torch.stack(rows) for kind, rows in vectors.items()}
