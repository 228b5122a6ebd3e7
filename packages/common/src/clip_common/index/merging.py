"""Merging of indexes that were made apart, such as the shards of one collection."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from clip_common.index.manifest import Manifest, name_segment, read_state, write_manifest
from clip_common.index.rows import Rows, View, collect_deleted
from clip_common.index.segments import Segment, Texts, VectorIndexError, write_segment
from clip_common.index.store import VectorIndex
from clip_common.runs.files import write_new_folder

TILE = 4096
"""Vectors copied at a time."""


class _Item(NamedTuple):
    """Place of an item; items sort by id."""

    id: str
    source: int
    row: int


def merge_indexes(out: Path, sources: Sequence[Path]) -> VectorIndex:
    """Write one index of the items of several, sorted by id: the same whatever the order of the sources.

    The merged index equals one to which all items were added at once in the order of their ids: vectors bit for bit,
    stamps, payloads and results of a search. An item may be in several sources if it is the same in all of them. The
    merged vectors are held in memory.

    Args:
        out: Folder of the merged index, which must not exist; it is written whole or not at all.
        sources: Folders of saved indexes of one model and collection; they are not changed.

    Raises:
        FileNotFoundError: A source holds no index.
        VectorIndexError: A source is damaged, has another model, collection or width than the first, or another item
            of the same id.
        ValueError: There is no source, or `out` exists.
        OSError: The disk is full, or the folder cannot be written.
    """
    if not sources:
        raise ValueError("no indexes to merge: name at least one")
    manifests, views = zip(*map(_read, sources), strict=True)
    for source, manifest in zip(sources, manifests, strict=True):
        _check_same(manifest, manifests[0], folders=(source, sources[0]))
    merged = _copy_items(views, list(_sort_items(views, sources)), width=manifests[0].width)
    model_name = min(manifest.model_name for manifest in manifests)
    with write_new_folder(out) as draft:
        name = name_segment()
        write_segment(draft / name, merged)
        first = manifests[0]
        write_manifest(draft, Manifest(first.model, model_name, first.collection, first.width, (name,)))
    return VectorIndex.open(out)


def _read(source: Path) -> tuple[Manifest, View]:
    state = read_state(source)
    if state is None:
        raise FileNotFoundError(f"{source} holds no index: name the folders of the indexes to merge")
    manifest, segments = state
    return manifest, View(segments, collect_deleted(segments))


def _check_same(manifest: Manifest, first: Manifest, *, folders: tuple[Path, Path]) -> None:
    for what in ("model", "collection", "width"):
        own, other = getattr(manifest, what), getattr(first, what)
        if own != other:
            if what == "model":
                own, other = f"{manifest.model_name}, {own[:12]}…", f"{first.model_name}, {other[:12]}…"
            raise VectorIndexError(
                f"{folders[0]} has another {what} ({own}) than {folders[1]} ({other}): merge indexes of one {what}"
            )


def _sort_items(views: Sequence[View], sources: Sequence[Path]) -> Iterator[_Item]:
    """Yield every item once, in the order of ids."""
    items = [
        _Item(id, number, row) for number, view in enumerate(views) for id, row in Rows.of(view.segments).row_of.items()
    ]
    items.sort()
    yield from items[:1]
    for earlier, item in pairwise(items):
        if earlier.id != item.id:
            yield item
            continue
        same = [(views[number], [row]) for _, number, row in (earlier, item)]
        texts = [view.read_texts(rows, "stamps", "payloads") for view, rows in same]
        vectors = [view.vectors(rows) for view, rows in same]
        if texts[0] != texts[1] or not torch.equal(*vectors):
            raise VectorIndexError(
                f"{item.id!r} differs between {sources[earlier.source]} and {sources[item.source]}: delete it from one"
            )


def _copy_items(views: Sequence[View], items: Sequence[_Item], *, width: int) -> Segment:
    vectors_ND = torch.empty(len(items), width)
    stamps, payloads = [""] * len(items), [""] * len(items)
    for number, view in enumerate(views):
        places = [place for place, item in enumerate(items) if item.source == number]
        for start in range(0, len(places), TILE):
            tile = places[start : start + TILE]
            rows = [items[place].row for place in tile]
            vectors_ND[tile] = view.vectors(rows)
            for place, stamp, payload in zip(tile, *view.read_texts(rows, "stamps", "payloads"), strict=True):
                stamps[place], payloads[place] = stamp, payload
    no_rows = torch.empty(0, dtype=torch.int64)
    return Segment(Texts.of(item.id for item in items), Texts.of(stamps), Texts.of(payloads), vectors_ND, no_rows)
