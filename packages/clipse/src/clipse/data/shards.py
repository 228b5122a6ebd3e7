"""Read webdataset shards: tar files of `key.jpg` with `key.txt` or `key.json`, each image readable on its own."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from clip_common.captions import find_split, parse_caption
from clip_common.errors import DataError
from clipse.data.records import ImageRecord

IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
TEXTS = frozenset({"txt", "json"})


def read_shards(root: Path) -> list[ImageRecord]:
    """Read one record per sample, in the order of the shards; a folder or file name starting with a split sets it.

    Captions are the lines of `key.txt`, or `caption` / `captions` of `key.json`, where null is an empty caption.

    Raises:
        DataError: No shard, a broken shard, a sample without image or captions, or a caption that is not text.
    """
    shards = [root] if root.is_file() else sorted(root.rglob("*.tar"))
    if not shards:
        raise DataError(f"{root}: no *.tar shards")
    records: list[ImageRecord] = []
    for shard in shards:
        split = find_split([shard.name] if shard == root else shard.relative_to(root).parts)
        for name, span, captions in _samples(shard):
            label = f"{shard.name}/{name}"
            records.append(ImageRecord(len(records), label, shard, captions, split or "", span))
    return records


def _samples(shard: Path) -> Iterator[tuple[str, tuple[int, int], tuple[str, ...]]]:
    images: dict[str, tuple[str, tuple[int, int]]] = {}
    captions: dict[str, tuple[str, ...]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key = f"{folder}/{stem}"
                if member.isfile() and suffix.lower() in IMAGES:
                    images[key] = (member.name, (member.offset_data, member.size))
                elif member.isfile() and suffix.lower() in TEXTS:
                    content = archive.extractfile(member)
                    assert content is not None
                    captions[key] = _captions(
                        content.read().decode("utf-8"), suffix.lower(), sample=f"{shard}: {member.name}"
                    )
    except (tarfile.TarError, UnicodeDecodeError, json.JSONDecodeError, AttributeError, EOFError) as error:
        raise DataError(f"{shard}: broken shard ({error})") from error
    odd = images.keys() ^ captions.keys()
    if odd:
        raise DataError(f"{shard}: {len(odd)} sample(s) without an image or without captions, first {min(odd)!r}")
    for key, (name, span) in images.items():
        yield name, span, captions[key]


def _captions(text: str, suffix: str, *, sample: str) -> tuple[str, ...]:
    if suffix == "txt":
        return tuple(line for line in text.split("\n") if line.strip())
    content = json.loads(text)
    found = content.get("captions", content.get("caption", ""))
    return tuple(parse_caption(value, sample=sample) for value in (found if isinstance(found, list) else [found]))
