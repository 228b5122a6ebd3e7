"""A LanceDB table as the store of an index (extra `lance`), for collections that outgrow one disk or need SQL filters.

LanceDB searches whole columns only, so the table has a column of unit vectors for each trained width.

Shapes: Q queries, B items, D width, d a trained width.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_common.errors import printable
from clip_common.index import Neighbour, VectorIndexError
from clip_common.index.certificate import Certificate
from clip_common.index.distinct import drop_near_duplicates
from clip_common.index.first import First

TABLE = "items"
INDEXED_ROWS = 100_000
"""Rows from which a column gets an IVF index; below it, comparing all rows is quick, and exact."""


class LanceStore:
    """Items of an index in a LanceDB table: `id`, `modality`, `path`, `text`, `stamp`, and vectors by width.

    Args:
        folder: Folder of the database.
        widths: D and the narrower widths that first passes may use, decreasing.

    Raises:
        ValueError: lancedb is not installed.
        VectorIndexError: The table is damaged, or has other columns.
    """

    def __init__(self, folder: Path, *, widths: Sequence[int]) -> None:
        try:
            import lancedb
        except ImportError as error:
            raise ValueError("store=lancedb needs lancedb: pip install 'edgeglass[lance]'") from error
        self.folder = folder
        self.widths = tuple(widths)
        try:
            database = lancedb.connect(os.fspath(folder))
            self.table = database.create_table(TABLE, schema=self._make_schema(), exist_ok=True)
            self.table.count_rows()
            names = set(self.table.schema.names)
        # lancedb raises RuntimeError, OSError, ValueError and others for damaged files
        except Exception as error:
            raise VectorIndexError(
                f"{printable(folder)} cannot be read as a LanceDB table ({' '.join(str(error).split())[:120]}): delete "
                "the index, and the items are encoded again"
            ) from error
        if names != set(self._make_schema().names):
            raise VectorIndexError(f"{printable(folder)} has columns of another model: delete it and index again")

    def stamps(self, modality: str) -> dict[str, str]:
        rows = self.table.search().where(_is(modality)).select(["raw_id", "stamp"]).to_arrow().to_pylist()
        return {os.fsdecode(row["raw_id"]): row["stamp"] for row in rows}

    def count(self, modality: str) -> int:
        return int(self.table.count_rows(_is(modality)))

    def vectors(self, modality: str, ids: Sequence[str]) -> Tensor:
        found: dict[str, Tensor] = {}
        for chunk in _chunks(ids):
            query = self.table.search().where(_among(modality, chunk))
            rows = query.select(["raw_id", self._column(None)]).to_arrow()
            vectors_BD = _read_vectors(rows, self._column(None), width=self.widths[0])
            found |= {os.fsdecode(id.as_py()): row_D for id, row_D in zip(rows["raw_id"], vectors_BD, strict=True)}
        return torch.stack([found[id] for id in ids]) if ids else torch.empty(0, self.widths[0])

    def payloads(self, modality: str, ids: Sequence[str]) -> list[Any]:
        found: dict[str, Any] = {}
        for chunk in _chunks(ids):
            rows = self.table.search().where(_among(modality, chunk)).select(["raw_id", "payload"]).to_arrow()
            found |= {os.fsdecode(row["raw_id"]): _parse(row["payload"]) for row in rows.to_pylist()}
        return [found[id] for id in ids]

    def update(
        self, modality: str, ids: Sequence[str], vectors_BD: Tensor, *, stamps: Sequence[str], payloads: Sequence[Any]
    ) -> None:
        import pyarrow as pa

        texts = [(payload or {}).get("text") for payload in payloads]
        files = [(payload or {}).get("file", id) for id, payload in zip(ids, payloads, strict=True)]
        columns: dict[str, Any] = {
            "key": [_key(modality, id) for id in ids],
            "id": [printable(id) for id in ids],
            "raw_id": [os.fsencode(id) for id in ids],
            "modality": [modality] * len(ids),
            "path": [printable(file) for file in files],
            "text": texts,
            "stamp": list(stamps),
            "payload": ["" if payload is None else json.dumps(payload) for payload in payloads],
        }
        vectors_BD = vectors_BD.to(torch.float32).cpu()
        for width in self.widths:
            prefix_Bd = vectors_BD if width == self.widths[0] else normalize(vectors_BD[:, :width], dim=1)
            flat = pa.array(prefix_Bd.contiguous().numpy().ravel())
            columns[f"vector_{width}"] = pa.FixedSizeListArray.from_arrays(flat, width)
        rows = pa.table(columns, schema=self._make_schema())
        self.table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def delete(self, modality: str, ids: Sequence[str]) -> None:
        for chunk in _chunks(ids):
            self.table.delete(_among(modality, chunk))

    def save(self) -> None:
        """Merge small files; index the columns of a large table. LanceDB has written all changes before."""
        self.table.optimize()
        if self.table.count_rows() >= INDEXED_ROWS and not self.table.list_indices():
            for width in self.widths:
                self.table.create_index(metric="cosine", vector_column_name=f"vector_{width}", index_type="IVF_FLAT")

    def nearest(
        self,
        modality: str,
        query_QD: Tensor,
        k: int,
        *,
        dim: int | None,
        candidates: int | None,
        first: First,
        unique: float | None,
        where: str | None,
    ) -> list[list[Neighbour]]:
        if first != "float32":
            raise ValueError(f"first={first}: a LanceDB table has float32 vectors only; leave it out")
        if dim is not None and dim not in self.widths:
            raise ValueError(f"dim={dim}: this LanceDB table has columns for {', '.join(map(str, self.widths))} only")
        if candidates is not None and candidates < k:
            raise ValueError(f"candidates={candidates} for k={k}: expected at least k")
        return [
            self._nearest(modality, query_D, k, dim=dim, candidates=candidates, unique=unique, where=where)
            for query_D in query_QD
        ]

    def certify(
        self,
        modality: str,
        query_QD: Tensor | None,
        k: int,
        *,
        dim: int | None,
        candidates: int | None,
        first: First,
        sample: int,
    ) -> Certificate:
        raise ValueError("explain: recall is measured in an index in files; this one is a LanceDB table")

    def _nearest(
        self,
        modality: str,
        query_D: Tensor,
        k: int,
        *,
        dim: int | None,
        candidates: int | None,
        unique: float | None,
        where: str | None,
    ) -> list[Neighbour]:
        wanted, total = candidates or k * (1 if unique is None else 4), self.count(modality)
        while True:
            query_d = query_D if dim is None else query_D[:dim]
            search = self.table.search(query_d.numpy(), vector_column_name=self._column(dim)).distance_type("cosine")
            chosen = _is(modality) if where is None else f"{_is(modality)} AND ({where})"
            try:
                rows = search.where(chosen, prefilter=True).limit(wanted).to_arrow()
            except (ValueError, RuntimeError, OSError) as error:
                raise ValueError(f"the search failed: {' '.join(str(error).split())[:200]}") from error
            vectors_CD = _read_vectors(rows, self._column(None), width=self.widths[0])
            compared = dim if candidates is None else None
            if compared is None:
                similarity_C = vectors_CD @ query_D
            else:
                similarity_C = normalize(vectors_CD[:, :compared], dim=1) @ normalize(query_D[:compared], dim=0)
            order = similarity_C.sort(descending=True, stable=True).indices
            kept = dict.fromkeys(range(min(k, len(order))), 0)
            if unique is not None:
                kept = drop_near_duplicates(vectors_CD[order], unique, k=k)
            if len(kept) >= k or len(rows) < wanted or wanted >= total:
                break
            wanted *= 4
        ids, payloads = rows["raw_id"].to_pylist(), rows["payload"].to_pylist()
        places = [(int(order[place]), duplicates) for place, duplicates in kept.items()]
        return [
            Neighbour(
                os.fsdecode(ids[row]),
                float(similarity_C[row]),
                _parse(payloads[row]),
                duplicates,
            )
            for row, duplicates in places
        ]

    def _column(self, dim: int | None) -> str:
        return f"vector_{dim or self.widths[0]}"

    def _make_schema(self) -> Any:
        import pyarrow as pa

        text = [pa.field(name, pa.string()) for name in ("key", "id")]
        rest = [pa.field(name, pa.string()) for name in ("modality", "path", "text", "stamp", "payload")]
        vectors = [pa.field(f"vector_{width}", pa.list_(pa.float32(), width)) for width in self.widths]
        return pa.schema([*text, pa.field("raw_id", pa.binary()), *rest, *vectors])


def _key(modality: str, id: str) -> str:
    return hashlib.sha256(f"{modality}\0{id}".encode("utf-8", "surrogateescape")).hexdigest()


def _is(modality: str) -> str:
    return f"modality = '{modality}'"


def _among(modality: str, ids: Sequence[str]) -> str:
    keys = ", ".join(f"'{_key(modality, id)}'" for id in ids)
    return f"key IN ({keys})"


def _parse(payload: str) -> Any:
    return json.loads(payload) if payload else None


def _chunks(ids: Sequence[str], size: int = 1000) -> list[Sequence[str]]:
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _read_vectors(rows: Any, column: str, *, width: int) -> Tensor:
    """Return the vectors (B, width) of a column of an Arrow table."""
    flat = rows[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(flat.copy()).reshape(-1, width)
