"""A searchable index of a folder of images, sounds and texts.

    edgeglass.json          model, its fingerprint, root of the items, kind of store, shard
    vectors/MODALITY/       a `VectorIndex` each, or a LanceDB database

Shapes: D width of the embeddings.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from clip_common.errors import DataError, check_list, printable
from clip_common.index import Neighbour, VectorIndexError, find_changes
from clip_common.index.certificate import Certificate
from clip_common.index.first import First
from clip_common.reporting import Progress
from clip_common.runs.files import write_new_folder
from edgeglass.aligner.aligner import Aligner, describe_query
from edgeglass.aligner.collection import IndexItem, scan_collection
from edgeglass.aligner.description import (
    IndexDescription,
    Shard,
    StoreKind,
    open_store,
    read_description,
    write_description,
)
from edgeglass.aligner.items import find_modality
from edgeglass.aligner.merging import describe_whole, merge_stores
from edgeglass.aligner.stores import sample_vectors
from edgeglass.aligner.thresholds import Calibration, read_calibration

SECONDS_BETWEEN_SAVES = 120.0
"""Interval at which a growing index is saved: the most work that a kill can lose."""
QUERIES = 256
"""Queries that `Index.explain` draws."""


@dataclass(frozen=True)
class Hit:
    """One result of a search.

    Attributes:
        id: Of the item in the index.
        modality: `image`, `text` or `audio`.
        similarity: Cosine with the query, −1 to 1, at the width of the last comparison.
        path: The file; of a text, the file that it is a line or a caption of, if there is one.
        text: The text; None for files.
        duplicates: Near-duplicates of it that were left out (`unique`).
        cut: Similarity above which an item of this modality matches the query, as calibrated; None without one.
    """

    id: str
    modality: str
    similarity: float
    path: Path | None
    text: str | None = None
    duplicates: int = 0
    cut: float | None = None

    @property
    def matches(self) -> bool | None:
        """Whether it is similar enough to match, as calibrated; None without a calibration."""
        return None if self.cut is None else self.similarity > self.cut


class Index:
    """An index of a folder; `Index.build` makes or updates one, `Index.open` opens one.

        index = Index.build(Aligner.from_pretrained("runs/edgeglass/first"), "photos/", "index/")
        for hit in Index.open("index/").search("a red ball", k=10, dim=128, candidates=200):
            print(f"{hit.similarity:.3f} {hit.path}")

    Attributes:
        folder: Of the index.
        description: What it was made of.
        store: Its vectors.
        skipped: Path below the root → problem, of the files that the last `build` left out.
        foreign: Modality → number of files that the last `build` left out because the model has no encoder of them.
    """

    def __init__(
        self, folder: Path, description: IndexDescription, *, aligner: Aligner | None = None, model: Path | None = None
    ) -> None:
        self.folder = folder
        self.description = description
        self.store = open_store(folder, description)
        self.skipped: dict[str, str] = {}
        self.foreign: dict[str, int] = {}
        self._aligner = aligner
        self._model = model

    @classmethod
    def open(cls, folder: str | Path, *, model: str | Path | None = None, aligner: Aligner | None = None) -> "Index":
        """Open an index; its model is loaded by the first search for something that is not a vector.

        Args:
            folder: Of the index.
            model: The run or saved model, if it was moved since.
            aligner: The model, if it is loaded already.

        Raises:
            VectorIndexError: No index, a damaged one, or the index of another model than `aligner`.
        """
        folder = Path(folder)
        description = read_description(folder)
        if description is None:
            raise VectorIndexError(f"{printable(folder)} holds no index: make one with `edgeglass embed RUN FOLDER`")
        if aligner is not None:
            description.check_aligner(aligner, folder=folder)
        return cls(folder, description, aligner=aligner, model=None if model is None else Path(model))

    @classmethod
    def build(
        cls,
        aligner: Aligner,
        root: str | Path,
        out: str | Path,
        *,
        shard: Shard | None = None,
        on_error: Literal["raise", "skip"] = "skip",
        store: StoreKind = "files",
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> "Index":
        """Index a folder, or bring its index up to date: only new and changed items are encoded.

        A killed build keeps what it saved, at least every two minutes; run it again to continue.

        Args:
            aligner: The model.
            root: Folder of images, sounds and text files, at any depth. A text file is one item for each line.
            out: Folder of the index.
            shard: (i, n) for part i of n, from 1; `merge` joins the parts.
            on_error: `skip` leaves unreadable files out and names them in `skipped`; `raise` stops.
            store: `lancedb` keeps vectors in a LanceDB table.
            batch_size: Items encoded at a time.
            progress: Called with the number of items encoded so far, and to encode.

        Raises:
            DataError: No such folder, nothing in it, nothing readable, or with `raise` an unreadable file.
            VectorIndexError: `out` is damaged, or the index of another model, folder, store or shard.
            ValueError: A shard outside 1 to n, or a store that is not installed.
        """
        root, out = Path(root), Path(out)
        if shard is not None and not 1 <= shard[0] <= shard[1]:
            raise ValueError(f"shard {shard[0]}/{shard[1]}: expected i/n with i from 1 to n")
        description = IndexDescription.of(aligner, root=root, store=store, shard=shard)
        known = read_description(out)
        if known is not None:
            known.check_same(description, folder=out)
        elif out.is_dir() and any(out.iterdir()):
            raise VectorIndexError(f"{printable(out)} holds other files and no index: name a new folder for the index")
        collection = scan_collection(root, aligner.modalities).take_shard(shard)
        index = cls(out, description, aligner=aligner)
        write_description(out, description)
        index.skipped, index.foreign = dict(collection.unreadable), dict(collection.foreign)
        if on_error == "raise" and collection.unreadable:
            raise DataError(next(iter(collection.unreadable.values())))
        missing: dict[str, list[IndexItem]] = {}
        for modality, items in collection.items.items():
            changes = find_changes(index.store.stamps(modality), {item.id: item.stamp for item in items})
            index.store.delete(modality, [*changes.changed, *changes.gone])
            wanted = {*changes.new, *changes.changed}
            missing[modality] = [item for item in items if item.id in wanted]
        index._encode(aligner, missing, on_error=on_error, batch_size=batch_size, progress=progress)
        if not len(index) and index.skipped:
            raise DataError(
                f"{printable(root)}: none of its {len(collection) + len(collection.unreadable)} items can be read; "
                f"{next(iter(index.skipped.values()))}"
            )
        return index

    @classmethod
    def merge(cls, out: str | Path, parts: Sequence[str | Path]) -> "Index":
        """Join the parts 1/n to n/n into one index in a new folder, equal to one that was built without shards.

        Raises:
            VectorIndexError: A part is missing, given twice, damaged, or of another model or folder.
            ValueError: `out` exists.
        """
        check_list(parts, "parts")
        opened = [cls.open(part) for part in parts]
        description = describe_whole([(part.folder, part.description) for part in opened])
        with write_new_folder(Path(out)) as draft:
            merge_stores([part.store for part in opened], open_store(draft, description), description.modalities)
            write_description(draft, description)
        return cls.open(out)

    @property
    def root(self) -> Path:
        """Folder of the items."""
        return Path(self.description.root)

    @property
    def counts(self) -> dict[str, int]:
        """Number of items of each modality of the model."""
        return {modality: self.store.count(modality) for modality in self.description.modalities}

    def __len__(self) -> int:
        return sum(self.counts.values())

    @cached_property
    def aligner(self) -> Aligner:
        """The model of the index.

        Raises:
            ValueError: It was moved, is damaged, or is another one.
        """
        if self._aligner is not None:
            return self._aligner
        source = self._model or (None if self.description.model is None else Path(self.description.model))
        if source is None or not source.exists():
            was = "was not saved" if source is None else f"{printable(source)} does not exist"
            raise ValueError(f"the model of {printable(self.folder)} {was}: name it with --model")
        aligner = Aligner.from_pretrained(source)
        self.description.check_aligner(aligner, folder=self.folder)
        return aligner

    @cached_property
    def calibration(self) -> Calibration | None:
        """Thresholds of "nothing here" that were fitted to the model; None without any.

        Raises:
            ValueError: They are damaged, or of another model.
        """
        folder = self.aligner.folder
        return None if folder is None else read_calibration(folder, model=self.description.fingerprint)

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        dim: int | None = None,
        candidates: int | None = None,
        first: First = "float32",
        unique: float | None = None,
        modality: str | None = None,
        where: str | None = None,
    ) -> list[Hit]:
        """Return the k items most similar to a query, best first.

        Args:
            query: Words (a str), an image or a sound (a Path, or decoded), or a list of several that are searched for
                together; see `Aligner.encode_query`.
            k: Number of items.
            dim: Compare the first `dim` numbers of the vectors; any from 1 to D. A LanceDB table: trained widths.
            candidates: Rank this many items of each modality that are best at `dim` at full width.
            first: How a first pass with candidates holds the vectors in memory; `int8` and `binary` are smaller.
            unique: Leave out items whose cosine with a better result of the same modality is this or more.
            modality: Search items of this modality only.
            where: SQL filter of a LanceDB table, such as `path LIKE 'holiday/%'`.

        Raises:
            ValueError: A query that cannot be encoded, settings that do not go together, or a modality that the model
                does not have.
        """
        items = query if isinstance(query, list) else [query]
        vector_D = self.aligner.encode_query(*items)
        hits = self.nearest(
            vector_D, k, dim=dim, candidates=candidates, first=first, unique=unique, modality=modality, where=where
        )
        if self.calibration is None:
            return hits
        kind = describe_query([find_modality(item) for item in items])
        width = self.description.widths[0] if dim is None or candidates is not None else dim
        cuts = {
            searched: self.calibration.find_cut(vector_D, query=kind, modality=searched, dim=width)
            for searched in self.check_modality(modality)
        }
        return [replace(hit, cut=cuts[hit.modality]) for hit in hits]

    def explain(
        self,
        k: int = 10,
        *,
        dim: int | None = None,
        candidates: int | None = None,
        first: First = "float32",
        modality: str | None = None,
        query_QD: Tensor | None = None,
    ) -> dict[str, Certificate]:
        """Measure the recall of such searches against exact search at full width, by modality of the items.

        Args:
            k, dim, candidates, first, modality: As for `search`.
            query_QD: Queries (Q, D) to search for; by default stored vectors of the other modalities, or of the same
                one if there are no others.

        Raises:
            ValueError: As for `search`, or a LanceDB table.
        """
        found: dict[str, Certificate] = {}
        for searched in self.check_modality(modality):
            if self.store.count(searched) > 1:
                queries = query_QD
                if queries is None:
                    others = [other for other in self.description.modalities if other != searched]
                    drawn = [sample_vectors(self.store, other, QUERIES) for other in others if self.store.count(other)]
                    queries = torch.cat(drawn) if drawn else None
                found[searched] = self.store.certify(
                    searched, queries, k, dim=dim, candidates=candidates, first=first, sample=QUERIES
                )
        return found

    def nearest(
        self,
        vector_D: Tensor,
        k: int = 10,
        *,
        dim: int | None = None,
        candidates: int | None = None,
        first: First = "float32",
        unique: float | None = None,
        modality: str | None = None,
        where: str | None = None,
    ) -> list[Hit]:
        """Return the k items most similar to a unit vector (D,), best first; arguments as for `search`.

        Raises:
            ValueError: As for `search`.
        """
        found = [
            self._make_hit(searched, neighbour)
            for searched in self.check_modality(modality)
            for neighbour in self.store.nearest(
                searched,
                vector_D[None],
                k,
                dim=dim,
                candidates=candidates,
                first=first,
                unique=unique,
                where=where,
            )[0]
        ]
        return sorted(found, key=lambda hit: -hit.similarity)[:k]

    def check_modality(self, modality: str | None) -> tuple[str, ...]:
        """Return the modalities to search: one, or all of the model.

        Raises:
            ValueError: One that the model does not have.
        """
        known = self.description.modalities
        if modality is not None and modality not in known:
            raise ValueError(f"modality={modality}: the model of this index has {', '.join(known)}")
        return known if modality is None else (modality,)

    def _make_hit(self, modality: str, found: Neighbour) -> Hit:
        payload = found.payload or {"file": found.id}
        return Hit(
            id=found.id,
            modality=modality,
            similarity=found.similarity,
            path=self.root / payload["file"] if "file" in payload else None,
            text=payload.get("text"),
            duplicates=found.duplicates,
        )

    def _encode(
        self,
        aligner: Aligner,
        missing: dict[str, list[IndexItem]],
        *,
        on_error: Literal["raise", "skip"],
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        """Encode and store items; save the finished part if an error or Ctrl-C interrupts."""
        total, done, saved = sum(map(len, missing.values())), 0, time.monotonic()
        try:
            for modality, items in missing.items():
                sources = [item.source for item in items]
                for rows, vectors_BD, failed in aligner.batches(modality, sources, batch_size=batch_size):
                    for row, error in failed.items():
                        if on_error == "raise":
                            raise error
                        self.skipped[items[row].id] = str(error)
                    if rows:
                        chosen = [items[row] for row in rows]
                        stamps, payloads = [item.stamp for item in chosen], [item.payload for item in chosen]
                        ids = [item.id for item in chosen]
                        self.store.update(modality, ids, vectors_BD, stamps=stamps, payloads=payloads)
                    done += len(rows) + len(failed)
                    if progress is not None:
                        progress(done, total)
                    if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                        self.store.save()
                        saved = time.monotonic()
        finally:
            self.store.save()
