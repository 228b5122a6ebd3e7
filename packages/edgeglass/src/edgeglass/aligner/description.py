"""The description of an index: the file that makes a folder one, and the store that it names."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from clip_common.errors import printable
from clip_common.index import VectorIndexError
from clip_common.runs.files import write_text
from edgeglass.aligner.aligner import Aligner
from edgeglass.aligner.lance import LanceStore
from edgeglass.aligner.stores import FileStore, VectorStore

MARKER = "edgeglass.json"
VECTORS = "vectors"
FORMAT = 1
"""Version of what `write_description` writes."""

StoreKind = Literal["files", "lancedb"]
Shard = tuple[int, int]


@dataclass(frozen=True)
class IndexDescription:
    """What an index was made of.

    Attributes:
        model: Folder of the saved model; None for a model that was not loaded from one.
        name: Name of the model, for messages.
        fingerprint: Of the model.
        context: `audio.context` of the model; None for a model without sounds.
        modalities: Of the model.
        widths: D and the narrower trained widths.
        root: Folder of the items.
        store: `files` or `lancedb`.
        shard: (i, n) for part i of n; None for the whole.
    """

    model: str | None
    name: str
    fingerprint: str
    context: str | None
    modalities: tuple[str, ...]
    widths: tuple[int, ...]
    root: str
    store: StoreKind
    shard: Shard | None

    @classmethod
    def of(cls, aligner: Aligner, *, root: Path, store: StoreKind, shard: Shard | None) -> "IndexDescription":
        """Describe an index of a folder by a model."""
        return cls(
            model=None if aligner.folder is None else os.fspath(aligner.folder),
            name=aligner.name,
            fingerprint=aligner.fingerprint,
            context=aligner.config.audio.context if "audio" in aligner.modalities else None,
            modalities=aligner.modalities,
            widths=aligner.widths,
            root=os.fspath(root.resolve()),
            store=store,
            shard=shard,
        )

    def check_same(self, other: "IndexDescription", *, folder: Path) -> None:
        """Raise VectorIndexError unless an index of this description in `folder` can be continued as `other`."""
        where = printable(folder)
        self.check_model(other, folder=folder)
        if self.root != other.root:
            raise VectorIndexError(
                f"{where} is the index of {printable(self.root)}, not of {printable(other.root)}: name another folder"
            )
        for name in ("store", "shard"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise VectorIndexError(
                    f"{where} was made with {name}={_say(ours)}, not {_say(theirs)}: name another folder for it"
                )

    def check_aligner(self, aligner: Aligner, *, folder: Path) -> None:
        """Raise VectorIndexError unless `aligner` is the model that made the vectors of this index."""
        self.check_model(IndexDescription.of(aligner, root=Path(), store=self.store, shard=None), folder=folder)

    def check_model(self, other: "IndexDescription", *, folder: Path) -> None:
        """Raise VectorIndexError unless the model of `other` made the vectors of this index."""
        where = printable(folder)
        if self.context != other.context and None not in (self.context, other.context):
            raise VectorIndexError(
                f"{where} was made with audio.context={self.context}, but this model has audio.context={other.context}:"
                " their vectors differ; open it with its own model, or delete it and index again"
            )
        if self.fingerprint != other.fingerprint:
            raise VectorIndexError(
                f"{where} was made with another model ({self.name}, fingerprint {self.fingerprint[:12]}…; this one is "
                f"{other.name}, {other.fingerprint[:12]}…): open it with its own model, or delete it and index again"
            )


def read_description(folder: Path) -> IndexDescription | None:
    """Return the description of the index in a folder; None if there is no index.

    Raises:
        VectorIndexError: It is damaged, or of another version.
    """
    file = folder / MARKER
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_bytes())
        if content.pop("format") != FORMAT:
            raise ValueError("of another version")
        shard = content["shard"]
        content["shard"] = None if shard is None else (int(shard[0]), int(shard[1]))
        lists = {name: tuple(content[name]) for name in ("modalities", "widths")}
        return IndexDescription(**content | lists)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        line = " ".join(str(error).split())
        raise VectorIndexError(
            f"{printable(file)} is damaged, or of another version ({line}): delete the index, and build it again"
        ) from error


def write_description(folder: Path, description: IndexDescription) -> None:
    """Make a folder the index of this description."""
    # ASCII, because the name of a folder need not be UTF-8
    write_text(folder / MARKER, json.dumps({"format": FORMAT} | asdict(description), indent=2) + "\n")


def open_store(folder: Path, description: IndexDescription) -> VectorStore:
    """Open or create the vectors of the index in a folder.

    Raises:
        VectorIndexError: They are damaged, or of another model or root.
        ValueError: lancedb is not installed.
    """
    if description.store == "lancedb":
        return LanceStore(folder / VECTORS, widths=description.widths)
    return FileStore(
        folder / VECTORS, model=description.fingerprint, model_name=description.name, root=Path(description.root)
    )


def _say(value: object) -> str:
    return "none" if value is None else "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
