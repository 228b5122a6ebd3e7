"""The manifest of an index: the model of its vectors, and its list of segments.

A new manifest replaces the old one atomically, so that an index has one state at any moment: segments that the manifest
does not list are not part of the index.
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
"""Names of files that a killed writer may leave; the last pattern is that of safetensors' unfinished files."""


@dataclass(frozen=True)
class Manifest:
    """One state of an index on disk.

    Attributes:
        model: Fingerprint of everything that a vector depends on except its item.
        model_name: Name of the model, for messages.
        collection: Source of the items, such as a folder.
        width: D.
        segments: File names, in the order of their rows.
    """

    model: str
    model_name: str
    collection: str
    width: int
    segments: tuple[str, ...]


def read_manifest(folder: Path) -> Manifest | None:
    """Return the state of the index in a folder, or None if there is no index.

    Raises:
        VectorIndexError: The index is damaged, or has another format.
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
    """Make `manifest` the state of the index; readers see it from now on.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    content = {"format": FORMAT} | asdict(manifest)
    # ASCII, because the name of a folder need not be UTF-8
    write_text(folder / NAME, json.dumps(content, indent=2) + "\n")


def read_state(folder: Path) -> tuple[Manifest, tuple[Segment, ...]] | None:
    """Memory-map the segments of the index in a folder; return None if there is no index.

    Raises:
        VectorIndexError: The index is damaged, or has another format.
    """
    manifest = read_manifest(folder)
    while manifest is not None:
        segments: list[Segment] = []
        try:
            for name in manifest.segments:
                before = sum(map(len, segments))
                segments.append(read_segment(folder / name, width=manifest.width, rows_before=before))
            return manifest, tuple(segments)
        except (TensorsError, RuntimeError) as error:  # torch raises RuntimeError if the file disappears meanwhile
            newer = read_manifest(folder)
            if newer == manifest:
                raise explain_damage(folder, f"{name} cannot be used") from error
            manifest = newer  # another process merged segments since the manifest was read
    return None


def name_segment() -> str:
    """Return an unused file name for a segment."""
    return f"segment-{uuid.uuid4().hex}.safetensors"


def remove_unlisted(folder: Path) -> None:
    """Remove merged segments and the files of killed or failed writers. Call it only while holding the lock."""
    manifest = read_manifest(folder)
    listed = {LOCK} if manifest is None else {LOCK, *manifest.segments}
    for file in folder.iterdir():
        if OURS.fullmatch(file.name) and file.name not in listed:
            file.unlink()


def check_replaceable(folder: Path) -> None:
    """Raise VectorIndexError if a folder without an index holds files that are not part of one."""
    foreign = sorted(file.name for file in folder.iterdir() if not OURS.fullmatch(file.name)) if folder.is_dir() else []
    if foreign:
        raise VectorIndexError(f"{folder} holds {foreign[0]} and no index: name a new folder for the index")


def explain_damage(folder: Path, reason: str) -> VectorIndexError:
    """Return the error for a folder that cannot be read as an index."""
    line = " ".join(reason.split())
    return VectorIndexError(
        f"{folder} is damaged, or no index of this version ({line}): delete it, and the items are encoded again"
    )
