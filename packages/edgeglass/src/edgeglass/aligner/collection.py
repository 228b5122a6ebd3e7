"""The items of a folder that an index holds: images and sounds of any depth, and captions or lines of text files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_common.errors import DataError, printable
from clip_common.index import scan_folder
from clip_common.tables import read_lines
from edgeglass.aligner.items import SUFFIXES
from edgeglass.data.formats import detect, read_format

TEXT_SUFFIX = ".txt"
"""Files whose lines are items."""


@dataclass(frozen=True)
class IndexItem:
    """One item of an index.

    Attributes:
        id: Path below the folder, with forward slashes; of a line, `PATH:NUMBER`; of a caption, `SAMPLE#NUMBER`.
        modality: `image`, `text` or `audio`.
        source: The file, or the text.
        stamp: Text that changes when the item does.
        payload: Stored beside its vector: of a text, `text`, and `file` if it belongs to one; None for files.
    """

    id: str
    modality: str
    source: Path | str
    stamp: str
    payload: dict[str, Any] | None = None


@dataclass
class Collection:
    """The items of a folder.

    Attributes:
        items: By modality, in order of their ids.
        unreadable: What was left out, and why, by path below the folder.
        foreign: Number of files of modalities that were not asked for.
    """

    items: dict[str, list[IndexItem]]
    unreadable: dict[str, str] = field(default_factory=dict)
    foreign: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.items.values()))

    def take_shard(self, shard: tuple[int, int] | None) -> "Collection":
        """Return shard i of n, with i from 1 to n: the items whose hash modulo n is i − 1; None returns all."""
        if shard is None:
            return self
        number, count = shard
        chosen = {
            modality: [item for item in items if hash_id(item.id) % count == number - 1]
            for modality, items in self.items.items()
        }
        return Collection(chosen, self.unreadable, self.foreign)


def scan_collection(root: Path, modalities: Sequence[str]) -> Collection:
    """Find the items below a folder, without opening images or sounds.

    Texts are the captions of the data set that the folder holds, if it holds one; otherwise each line that is not blank
    of its text files, which are UTF-8.

    Args:
        root: Searched with all subfolders.
        modalities: What to look for.

    Raises:
        DataError: There is no such folder, or it holds nothing of these modalities.
    """
    words = {"image": "image", "text": "text file", "audio": "sound"}
    what = " or ".join(words[modality] for modality in modalities)
    if not root.is_dir():
        raise DataError(f"{printable(root)} is not a folder: give the folder of what to search")
    found = Collection({modality: [] for modality in modalities})
    captions = _read_captions(root, found) if "text" in modalities else None
    suffixes = {"image": SUFFIXES["image"], "text": () if captions else (TEXT_SUFFIX,), "audio": SUFFIXES["audio"]}
    of_suffix = {suffix: modality for modality, those in suffixes.items() for suffix in those}
    try:
        stamps = scan_folder(root, suffixes=of_suffix, what=what)
    except DataError:
        if not captions:
            raise
        stamps = {}
    for name, stamp in stamps.items():
        modality = of_suffix[Path(name).suffix.lower()]
        if modality not in modalities:
            found.foreign[modality] = found.foreign.get(modality, 0) + 1
        elif modality == "text":
            try:
                found.items["text"] += _read_lines(root, name)
            except DataError as error:
                found.unreadable[name] = str(error)
        else:
            found.items[modality].append(IndexItem(name, modality, root / name, stamp))
    if captions:
        found.items["text"] = captions
    for items in found.items.values():
        items.sort(key=lambda item: item.id)
    if not len(found) and not found.unreadable:
        raise DataError(f"{printable(root)} holds no {what} that this model can encode: name a folder that does")
    return found


def hash_id(id: str) -> int:
    """Return a number that depends on the id alone."""
    return int.from_bytes(hashlib.sha256(id.encode("utf-8", "surrogateescape")).digest()[:8])


def _read_captions(root: Path, found: Collection) -> list[IndexItem]:
    """Return the captions of the data set in a folder; none without a set that has a list of captions."""
    try:
        format = detect(root)
    except DataError:  # no data set
        return []
    if format == "folders":  # its captions are lines of text files
        return []
    try:
        samples = read_format(root, format)
    except (DataError, ImportError) as error:
        found.unreadable["."] = str(error)
        return []
    items: dict[str, IndexItem] = {}
    packed = 0
    for sample in samples:
        sources = [source for source in (sample.image, sample.audio) if source is not None]
        packed += sum(not isinstance(source, Path) for source in sources)
        files = [source for source in sources if isinstance(source, Path) and source.is_relative_to(root)]
        file = {"file": files[0].relative_to(root).as_posix()} if files else {}
        for number, caption in enumerate(sample.captions, start=1):
            if text := caption.strip():
                id = f"{sample.name}#{number}"
                if id in items:  # such as another row of the same image
                    id = f"{sample.name}#{number}~{sample.id}"
                items[id] = _make_text(id, text, file)
    if packed:
        found.unreadable["."] = (
            f"{printable(root)}: {packed:,} images and sounds inside {format} files are left out: save them as files"
        )
    return list(items.values())


def _read_lines(root: Path, name: str) -> list[IndexItem]:
    return [
        _make_text(f"{name}:{number}", text, {"file": name})
        for number, line in read_lines(root / name)
        if (text := line.strip())
    ]


def _make_text(id: str, text: str, file: dict[str, str]) -> IndexItem:
    stamp = hashlib.sha256(text.encode()).hexdigest()[:32]
    return IndexItem(id, "text", text, stamp, payload={"text": text, **file})
