"""Joining the parts of an index that several machines built."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_common.errors import printable
from clip_common.index import VectorIndexError
from edgeglass.aligner.description import IndexDescription
from edgeglass.aligner.stores import VectorStore

ROWS_AT_ONCE = 10_000
"""Rows in memory at a time."""


def describe_whole(parts: Sequence[tuple[Path, IndexDescription]]) -> IndexDescription:
    """Return the description of the index that has these parts: the folder of each, and its description.

    Raises:
        VectorIndexError: They are not the parts 1/n to n/n of one index.
    """
    if not parts:
        raise VectorIndexError("no parts: name the folders that `edgeglass embed --shard i/n` wrote")
    first_folder, first = parts[0]
    found: dict[int, Path] = {}
    for folder, description in parts:
        if description.shard is None or first.shard is None:
            whole = folder if description.shard is None else first_folder
            raise VectorIndexError(f"{printable(whole)} is a whole index, no part i/n of one: leave it out")
        number, count = description.shard
        # what a part differs in is checked against the first one, as if both were the same part
        description.check_same(replace(first, shard=(number, first.shard[1])), folder=folder)
        if number in found:
            raise VectorIndexError(f"{printable(found[number])} and {printable(folder)} are both part {number}/{count}")
        found[number] = folder
    assert first.shard is not None
    count = first.shard[1]
    missing = [f"{number}/{count}" for number in range(1, count + 1) if number not in found]
    if missing:
        raise VectorIndexError(f"part {', '.join(missing)} is missing: name the folders of all parts")
    return replace(first, shard=None)


def merge_stores(parts: Sequence[VectorStore], out: VectorStore, modalities: Sequence[str]) -> None:
    """Copy the items of all parts into an empty store, in the order of an index that was built without shards."""
    for modality in modalities:
        stamps_of = [part.stamps(modality) for part in parts]
        part_of = {id: number for number, stamps in enumerate(stamps_of) for id in stamps}
        ids = sorted(part_of)
        for start in range(0, len(ids), ROWS_AT_ONCE):
            chunk = ids[start : start + ROWS_AT_ONCE]
            vectors: dict[str, Tensor] = {}
            payloads: dict[str, Any] = {}
            for number, part in enumerate(parts):
                own = [id for id in chunk if part_of[id] == number]
                vectors |= zip(own, part.vectors(modality, own), strict=True)
                payloads |= zip(own, part.payloads(modality, own), strict=True)
            rows_BD = torch.stack([vectors[id] for id in chunk])
            stamps = [stamps_of[part_of[id]][id] for id in chunk]
            out.update(modality, chunk, rows_BD, stamps=stamps, payloads=[payloads[id] for id in chunk])
            out.save()
