"""Read webdataset shards: tar files of `key.jpg` with `key.txt` or `key.json`, each image readable on its own."""

import gzip
import json
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip_common.captions import CaptionedImage, Place, ReadLog, find_columns, find_split, parse_caption
from clip_common.errors import DataError
from clip_common.pixels import cache_folder, key_of, state_of

IMAGES = frozenset({"jpg", "jpeg", "png", "webp"})
SHARDS = (".tar", ".tar.gz", ".tgz")


def find_shards(root: Path) -> list[Path]:
    """Return the shards of a folder, at any depth, or the one that `root` is."""
    return [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.name.endswith(SHARDS))


def read_shards(roots: Sequence[Path], log: ReadLog, *, cache: Path) -> list[CaptionedImage]:
    """Read one image per sample, in the order of the shards; a folder or file name starting with a split sets it.

    The image of a sample is `key.jpg`, else the only other image, else `key.input.jpg`. Captions are the lines of
    `key.txt`, else those of `key.json`, where null is an empty caption. A sample without an image or captions, or with
    captions that are not text, is a problem; so is a shard that breaks off, of which the samples before are kept.

    Args:
        roots: Folders of shards, or shards.
        log: Receives the problems.
        cache: Folder into which compressed shards are unpacked, once each.
    """
    images: list[CaptionedImage] = []
    for root in roots:
        for shard in find_shards(root):
            split = find_split([shard.name] if shard == root else shard.relative_to(root).parts) or ""
            file = shard if shard.suffix == ".tar" else _unpack(shard, cache, log)
            for key, sample in _list_members(shard, file, log).items():
                try:
                    name, span = sample.choose_image()
                    captions = sample.choose_captions(key.lstrip("/"), log)
                except (DataError, ValueError) as error:  # ValueError: not UTF-8, or not JSON
                    said = " ".join(str(error).split())
                    log.add("sample", Place(shard), f"sample {key.lstrip('/')}: {said}")
                    continue
                places = (Place(shard),) * max(1, len(captions))
                images.append(CaptionedImage(f"{shard.name}/{name}", file, captions, split, places, span))
    return images


@dataclass
class _Sample:
    """Members of one key: extension → offset and size of an image, name and content of a text."""

    images: dict[str, tuple[str, tuple[int, int]]] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)

    def choose_image(self) -> tuple[str, tuple[int, int]]:
        """Return the name and span of the image."""
        plain = [extension for extension in self.images if "." not in extension]
        inputs = [extension for extension in self.images if extension.startswith("input.")]
        chosen = plain or (list(self.images) if len(self.images) == 1 else inputs)
        if len(chosen) != 1:
            raise DataError(f"expected one image, got {', '.join(self.images) or 'none'}")
        return self.images[chosen[0]]

    def choose_captions(self, key: str, log: ReadLog) -> tuple[str, ...]:
        """Return the captions: of a text, else of JSON."""
        texts = sorted((name for name in self.texts if name.endswith("txt")), key=lambda name: name.count("."))
        if texts:
            lines = self.texts[texts[0]].decode("utf-8-sig").replace("\r", "\n").split("\n")
            return tuple(line for line in lines if line.strip()) or ("",)
        if not self.texts:
            raise DataError("no captions: expected a .txt or a .json beside the image")
        name, content = next(iter(self.texts.items()))
        value = json.loads(content)
        if not isinstance(value, dict):
            raise DataError(f"{key}.{name}: expected a JSON object, got {value!r:.60}")
        found = value[find_columns(value, log, needed=("caption",))["caption"]]
        return tuple(
            parse_caption(text, sample=f"{key}.{name}") for text in (found if isinstance(found, list) else [found])
        )


def _list_members(shard: Path, file: Path, log: ReadLog) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                extension = extension.lower()
                last = extension.rpartition(".")[2]
                if not member.isfile() or not stem or last not in (*IMAGES, "txt", "json"):
                    continue
                sample = samples.setdefault(f"{folder}/{stem}", _Sample())
                if extension in sample.images or extension in sample.texts:
                    said = f"sample {folder}/{stem}".replace(" /", " ")
                    log.add(
                        "sample", Place(shard), f"{said}: a second .{extension}, left out: give each sample its key"
                    )
                    continue
                if last in IMAGES:
                    sample.images[extension] = member.name, (member.offset_data, member.size)
                else:
                    content = archive.extractfile(member)
                    assert content is not None
                    sample.texts[extension] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        log.add("file", Place(shard), f"broken shard ({error}); {len(samples)} sample(s) before the break")
    return samples


def _unpack(shard: Path, cache: Path, log: ReadLog) -> Path:
    """Return the unpacked tar of a compressed shard; of a broken one what there is."""
    folder = cache / key_of([state_of(shard)])
    if not (folder / "shard.tar").is_file():
        with (
            cache_folder(folder, needed=shard.stat().st_size, what="the unpacked shard") as draft,
            gzip.open(shard) as source,
            (draft / "shard.tar").open("wb") as target,
        ):
            try:
                while part := source.read1(1 << 20):  # read() would lose what comes before a break
                    target.write(part)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                (draft / "broken.txt").write_text(str(error))
    if (folder / "broken.txt").is_file():
        log.add("file", Place(shard), f"broken gzip ({(folder / 'broken.txt').read_text()})")
    return folder / "shard.tar"
