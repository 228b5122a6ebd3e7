"""The manifest of an index: what made its vectors, and the segments that it consists of.

It is replaced whole, so that an index has one state at any moment: a segment that it does not list is not part of it.
"""

import json
import re
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from clip_common.index.segments import Segment, VectorIndexError, read_segment
from clip_common.runs.files import write_text
from clip_common.tensors import TensorsError

NAME = "index.json"
LOCK = ".lock"
FORMAT = 2
OURS = re.compile(r"segment-[0-9a-f]{32}\.safetensors|\.lock|\.(segment-|index\.json).*\.tmp|\.tmp\w{6}")
"""Names that a killed writer may leave; the last is that of safetensors for a file that it has not finished."""


@dataclass(frozen=True)
class Manifest:
    """One state of an index on disk.

    Attributes:
        model: Fingerprint of all that a vector depends on besides the item.
        model_name: For messages.
        collection: What the items are of, such as a folder.
        width: D.
        segments: File names, in the order of their rows.
    """

    model: str
    model_name: str
    collection: str
    width: int
    segments: tuple[str, ...]


def read_manifest(folder: Path) -> Manifest | None:
    """Return the state of the index in a folder; None if there is no index.

    Raises:
        VectorIndexError: Damaged, or of another format.
    """
    if folder.is_file():
        raise explain_damage(folder, "a file: an index is a folder")
    try:
        content = json.loads((folder / NAME).read_bytes())
        if content.pop("format") != FORMAT:
            raise ValueError("of another version")
        return Manifest(**content | {"segments": tuple(content["segments"])})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise explain_damage(folder, f"{NAME}: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make `manifest` the state of the index: from here on readers see it.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    content = {"format": FORMAT} | asdict(manifest)
    write_text(folder / NAME, json.dumps(content, indent=2) + "\n")  # ASCII: a folder's name may be no UTF-8


def read_state(folder: Path) -> tuple[Manifest, tuple[Segment, ...]] | None:
    """Map the segments of the index in a folder; None if there is no index.

    Raises:
        VectorIndexError: Damaged, or of another format.
    """
    manifest = read_manifest(folder)
    while manifest is not None:
        segments: list[Segment] = []
        try:
            for name in manifest.segments:
                before = sum(map(len, segments))
                segments.append(read_segment(folder / name, width=manifest.width, rows_before=before))
            return manifest, tuple(segments)
        except (TensorsError, RuntimeError) as error:  # the latter from torch, for a file that is gone as it is mapped
            newer = read_manifest(folder)
            if newer == manifest:
                raise explain_damage(folder, f"{name} cannot be used") from error
            manifest = newer  # another process merged segments since the manifest was read
    return None


def name_segment() -> str:
    """Return a file name for a segment that no other has."""
    return f"segment-{uuid.uuid4().hex}.safetensors"


def remove_unlisted(folder: Path) -> None:
    """Remove what killed or failed writers left and what was merged. Only for the process that holds the lock."""
    manifest = read_manifest(folder)
    listed = {LOCK} if manifest is None else {LOCK, *manifest.segments}
    for file in folder.iterdir():
        if OURS.fullmatch(file.name) and file.name not in listed:
            file.unlink()


def check_replaceable(folder: Path) -> None:
    """Raise VectorIndexError if a folder without an index holds anything that an index does not."""
    foreign = sorted(file.name for file in folder.iterdir() if not OURS.fullmatch(file.name)) if folder.is_dir() else []
    if foreign:
        raise VectorIndexError(f"{folder} holds {foreign[0]} and no index: name a new folder for the index")


def explain_damage(folder: Path, reason: str) -> VectorIndexError:
    """Return the error for what cannot be read as an index."""
    line = " ".join(reason.split())
    return VectorIndexError(
        f"{folder} is damaged, or no index of this version ({line}): delete it, and the items are encoded again"
    )
