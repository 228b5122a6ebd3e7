"""The index of a collection's vectors, stored in a folder and updated by writing changes only.

The folder holds segments, safetensors files that are written once, and `index.json`, which lists them. `save` writes
the changes as one more segment and then replaces the list, so that a kill leaves the old state or the new one, and
readers see one of the two. A file lock lets one writer in at a time. Now and then `save` merges segments and drops
deleted rows (`clip_common.index.compaction`).

N items, D the width of their vectors, Q queries.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from clip_common.errors import check_list
from clip_common.index.compaction import compact
from clip_common.index.files import Changes, find_changes
from clip_common.index.first import First
from clip_common.index.manifest import (
    LOCK,
    Manifest,
    check_replaceable,
    name_segment,
    read_manifest,
    read_state,
    remove_unlisted,
    write_manifest,
)
from clip_common.index.rows import Edit, Rows, View, collect_deleted, merge_edits
from clip_common.index.search import Neighbour, SearchPlan, parse_payload, search
from clip_common.index.segments import (
    Segment,
    Texts,
    VectorIndexError,
    read_segment,
    write_segment,
)


class VectorIndex:
    """Items of a collection: id, vector, stamp (text that changes when the item does), payload (any JSON value).

    An id is any text, such as a path; file names that are not UTF-8 are returned unchanged. Changes stay in memory
    until `save`. Several processes may open the same index: each sees the state that it opened, and its `save` applies
    its changes to the newest state, item by item.

    Args:
        model: Fingerprint of everything that a vector depends on except its item: weights, preprocessing, and for
            images `clip_common.images.VERSION`, so that vectors of differently decoded images are not mixed.
        model_name: Name of the model, for messages.
        collection: Source of the items, such as the path of a folder.
        folder: Folder for `save`, created when first needed; None for an index in memory.

    Raises:
        VectorIndexError: `folder` holds other files.
    """

    def __init__(self, *, model: str, model_name: str, collection: str, folder: Path | None = None) -> None:
        if folder is not None:
            check_replaceable(folder)
        self.folder = folder
        self._manifest = Manifest(model, model_name, collection, width=0, segments=())
        self._saved: tuple[Segment, ...] = ()
        self._edits: list[Edit] = []
        self._known_rows: Rows | None = None
        self._current_view: View | None = None

    @classmethod
    def open(cls, folder: Path) -> "VectorIndex":
        """Memory-map the index in a folder; a vector is read when it is first compared.

        Raises:
            FileNotFoundError: There is no index.
            VectorIndexError: The index is damaged, or has another format.
        """
        state = read_state(folder)
        if state is None:
            raise FileNotFoundError(f"{folder} holds no index")
        manifest, segments = state
        index = cls(model=manifest.model, model_name=manifest.model_name, collection=manifest.collection)
        index.folder, index._manifest, index._saved = folder, manifest, segments
        return index

    @classmethod
    def open_or_create(cls, folder: Path, *, model: str, model_name: str, collection: str) -> "VectorIndex":
        """Open the index in a folder, or create one; arguments as for the class.

        Raises:
            VectorIndexError: The index is damaged, or has another model, collection or format; or `folder` holds other
                files but no index.
        """
        try:
            index = cls.open(folder)
        except FileNotFoundError:
            return cls(model=model, model_name=model_name, collection=collection, folder=folder)
        index.check_model(model, name=model_name)
        if index.collection != collection:
            raise VectorIndexError(
                f"{folder} is the index of {index.collection}, not of {collection}: name another folder for it"
            )
        return index

    def check_model(self, model: str, *, name: str) -> None:
        """Raise VectorIndexError unless the model of this fingerprint made the vectors; `name` is for messages."""
        if self.model != model:
            raise VectorIndexError(
                f"{self.folder} was made with another model ({self.model_name}, fingerprint {self.model[:12]}…; this "
                f"one is {name}, {model[:12]}…): open it with its own model, or delete it and index again"
            )

    @property
    def model(self) -> str:
        """Fingerprint of the model that made the vectors."""
        return self._manifest.model

    @property
    def model_name(self) -> str:
        """Name of the model that made the vectors."""
        return self._manifest.model_name

    @property
    def collection(self) -> str:
        """Source of the items."""
        return self._manifest.collection

    @property
    def width(self) -> int:
        """D; 0 before the first item."""
        return self._manifest.width or (self._edits[0].added.vectors_SD.shape[1] if self._edits else 0)

    @property
    def ids(self) -> list[str]:
        """The N ids in the order in which they were added; an update adds an item again."""
        return list(self._rows().row_of)

    @property
    def parts(self) -> list[Tensor]:
        """Matrices of width D with the vectors of all items and of `deleted_rows`; memory-mapped if saved."""
        return self._view().parts

    @property
    def deleted_rows(self) -> Tensor:
        """int64, the rows of `parts` that are no longer in the index, counted through all parts."""
        return self._view().deleted

    def __len__(self) -> int:
        return len(self._rows().row_of) if self._edits else len(self._view())

    def __contains__(self, id: object) -> bool:
        return id in self._rows().row_of

    def vectors(self, ids: Sequence[str]) -> Tensor:
        """Return a copy of the vectors of some items, (len(ids), D).

        Raises:
            ValueError: An id is not in the index.
        """
        check_list(ids, "ids")
        view = self._view()  # before the rows are looked up: it may merge edits, and so move rows
        return view.vectors([self._find(id) for id in ids]) if ids else torch.empty(0, self.width)

    def payload(self, id: str) -> Any:
        """Return the JSON value stored with an item, or None.

        Raises:
            ValueError: The id is not in the index.
        """
        view = self._view()
        ((payload,),) = view.read_texts([self._find(id)], "payloads")
        return parse_payload(payload)

    def stamps(self) -> dict[str, str]:
        """Return the stamps of all items by id; "" for an item without one."""
        segments, rows = self._view().segments, self._rows()
        known = [stamp for segment in segments for stamp in segment.stamps.decode()]
        return {id: known[row] for id, row in rows.row_of.items()}

    def changes(self, stamps: Mapping[str, str]) -> Changes:
        """Return the differences between the current items and the index.

        Args:
            stamps: The stamps of all current items by id, as from `scan_folder`; "" for items that never change.
        """
        return find_changes(self.stamps(), stamps)

    def add(
        self,
        ids: Sequence[str],
        vectors_MD: Tensor,
        *,
        stamps: Sequence[str] | None = None,
        payloads: Sequence[Any] | None = None,
    ) -> None:
        """Add M items.

        Args:
            ids: M different ids that the index does not hold.
            vectors_MD: (M, D), stored as float32 on the CPU; unit vectors, if similarities shall be cosines.
            stamps: M texts that change when their items do, from `stamp_file` or a digest of the content.
            payloads: M JSON values, such as captions; None for no payload.

        Raises:
            ValueError: An id is in the index or given twice, or a vector has another width or is not finite.
            TypeError: A payload is not a JSON value.
        """
        check_list(ids, "ids")
        if (known := next((id for id in ids if id in self), None)) is not None:
            raise ValueError(f"{known!r} is in the index: update it, or delete it first")
        self.update(ids, vectors_MD, stamps=stamps, payloads=payloads)

    def update(
        self,
        ids: Sequence[str],
        vectors_MD: Tensor,
        *,
        stamps: Sequence[str] | None = None,
        payloads: Sequence[Any] | None = None,
    ) -> None:
        """Add M items, replacing those with the same ids; arguments and other errors as for `add`."""
        check_list(ids, "ids")
        vectors_MD = vectors_MD.detach().to("cpu", torch.float32, copy=True)
        if vectors_MD.ndim != 2 or (self.width and vectors_MD.shape[1] != self.width):
            raise ValueError(f"vectors of shape {tuple(vectors_MD.shape)}: expected ({len(ids)}, {self.width or 'D'})")
        if len(set(ids)) != len(ids):
            raise ValueError("an id is given twice: give each item once")
        texts = ["" if payload is None else json.dumps(payload) for payload in payloads or [None] * len(ids)]
        stamps = stamps or [""] * len(ids)
        counts = f"{len(ids)} ids, {len(stamps)} stamps and {len(texts)} payloads"
        if not len(vectors_MD) == len(ids) == len(stamps) == len(texts):
            raise ValueError(f"{len(vectors_MD)} vectors for {counts}: give as many of each")
        if not bool(vectors_MD.isfinite().all()):
            row = int((~vectors_MD.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"the vector of {ids[row]!r} holds a NaN or an infinity: check the output of the model")
        if ids:
            added = Segment(Texts.of(ids), Texts.of(stamps), Texts.of(texts), vectors_MD, deleted=_NO_ROWS)
            self._edit(Edit((), added))

    def delete(self, ids: Collection[str]) -> None:
        """Delete items.

        Raises:
            ValueError: An id is not in the index.
        """
        check_list(ids, "ids")
        if (unknown := next((id for id in ids if id not in self), None)) is not None:
            raise ValueError(f"{unknown!r} is not in the index: nothing is deleted")
        if ids:
            none = Texts.of(())
            self._edit(Edit(tuple(ids), Segment(none, none, none, torch.empty(0, self.width), deleted=_NO_ROWS)))

    def nearest(
        self,
        vector_D: Tensor,
        k: int,
        *,
        dim: int | None = None,
        candidates: int | None = None,
        first: First = "float32",
        unique: float | None = None,
    ) -> list[Neighbour]:
        """Return the k items most similar to a vector, best first; of equally similar items the one added first.

        By default every item is compared, in float32. The last bit of a similarity may depend on the row of the item.

        Args:
            vector_D: (D,) query.
            k: Number of items; if the index has fewer, all are returned.
            dim: Compare the first `dim` numbers of the vectors by their cosine (Matryoshka embeddings). By default
                whole vectors are compared by their inner product, the cosine of unit vectors.
            candidates: Compare by `dim` in a first pass only, take this many items, k or more, and rank them by the
                inner product of whole vectors.
            first: How the first pass holds the vectors, in memory until the index changes: `float32`, 4 bytes for each
                of the `dim` numbers; `int8`, one; `binary`, one bit. `int8` and `binary` leave all else of a stored
                index on disk (`clip_common.index.first`).
            unique: Leave out each item whose cosine with a better result is this or more, so that k distinct items
                remain; more items are ranked if needed.

        Raises:
            ValueError: k is below 1, `dim` is outside 1 to D, `candidates` is below k, or the query has another width
                or is not finite.
        """
        return self.nearest_to_each(vector_D[None], k, dim=dim, candidates=candidates, first=first, unique=unique)[0]

    def nearest_to_each(
        self,
        query_QD: Tensor,
        k: int,
        *,
        dim: int | None = None,
        candidates: int | None = None,
        first: First = "float32",
        unique: float | None = None,
    ) -> list[list[Neighbour]]:
        """Return the results of `nearest` for each of Q queries, faster than one by one; last bits may differ.

        Args:
            query_QD: (Q, D).
            k: As for `nearest`.
            dim: As for `nearest`.
            candidates: As for `nearest`.
            first: As for `nearest`.
            unique: As for `nearest`.

        Raises:
            ValueError: As for `nearest`.
        """
        query_QD, plan = query_QD.detach().to("cpu", torch.float32), SearchPlan(k, dim, candidates, first, unique)
        plan.check(query_QD, width=self.width or query_QD.shape[-1])
        return search(self._view(), query_QD, plan)

    def save(self) -> None:
        """Write the changes since the last save; without changes, write nothing.

        Raises:
            ValueError: The index is in memory only.
            VectorIndexError: The index on disk was deleted, or replaced by one of another model or collection.
            OSError: The disk is full, or the folder cannot be written. The old state and the unsaved changes are kept.
        """
        if self.folder is None:
            raise ValueError("the index is in memory only: create it with a folder to save it")
        if not self._edits:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / LOCK):
            try:
                self._take_newest(self.folder)
                self._write(self.folder)
            finally:
                remove_unlisted(self.folder)

    def _take_newest(self, folder: Path) -> None:
        """Continue from the state on disk, which another process may have changed."""
        newest = read_manifest(folder)
        if newest == self._manifest or (newest is None and not self._manifest.segments):
            return
        state = read_state(folder)
        if state is None or state[0].model != self.model or state[0].collection != self.collection:
            raise VectorIndexError(f"{folder} was deleted or replaced by another index while it was in use: run again")
        self._known_rows = self._current_view = None
        self._manifest, self._saved = state

    def _write(self, folder: Path) -> None:
        self._merge_edits()
        rows, added = self._rows(), self._edits[0].added
        newly_deleted = rows.deleted - set(collect_deleted(self._saved).tolist())
        fresh = replace(added, deleted=torch.tensor(sorted(newly_deleted), dtype=torch.int64))
        first, fresh = compact([*self._saved, fresh], rows)
        kept, names = self._saved[:first], self._manifest.segments[:first]
        if len(fresh) or len(fresh.deleted):
            name, before = name_segment(), sum(map(len, kept))
            write_segment(folder / name, fresh)
            kept = (*kept, read_segment(folder / name, width=self.width, rows_before=before))
            names = (*names, name)
        manifest = replace(self._manifest, width=self.width, segments=names)
        write_manifest(folder, manifest)
        self._known_rows = self._current_view = None
        self._manifest, self._saved, self._edits = manifest, kept, []

    def _edit(self, edit: Edit) -> None:
        self._current_view = None
        self._edits.append(edit)  # one step, so that Ctrl-C leaves the whole edit or nothing

    def _rows(self) -> Rows:
        rows, self._known_rows = self._known_rows or Rows.of(self._saved), None  # None if Ctrl-C interrupts
        for edit in self._edits[rows.edits :]:
            rows.apply(edit)
        self._known_rows = rows
        return rows

    def _merge_edits(self) -> None:
        if len(self._edits) > 1:
            merged = merge_edits(self._edits, self._rows(), saved_rows=sum(map(len, self._saved)))
            self._known_rows = self._current_view = None
            self._edits = [merged]

    def _view(self) -> View:
        if self._current_view is None:
            self._merge_edits()
            segments = (*self._saved, *(edit.added for edit in self._edits))
            if self._edits:
                deleted = torch.tensor(sorted(self._rows().deleted), dtype=torch.int64)
            else:
                deleted = collect_deleted(self._saved)
            self._current_view = View(segments, deleted)
        return self._current_view

    def _find(self, id: str) -> int:
        row = self._rows().row_of.get(id)
        if row is None:
            raise ValueError(f"{id!r} is not in the index")
        return row


_NO_ROWS = torch.empty(0, dtype=torch.int64)
