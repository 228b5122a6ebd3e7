"""Find the captions of a set: a caption file, or webdataset shards."""

from pathlib import Path

from clip_common import captions
from clip_common.errors import DataError

FORMATS = (*captions.PARSERS, "webdataset")
"""Values of `data.format` besides `auto`."""

NAMES = {**captions.NAMES, "webdataset": "*.tar"}
"""Format → names of its files, for messages."""


def detect(root: Path) -> tuple[str, Path]:
    """Return the format of a folder or captions file, and the captions file (for shards the folder itself).

    Raises:
        DataError: No known captions file; the message lists the known names.
    """
    if root.is_file():
        if root.name.endswith(".tar"):
            return "webdataset", root.parent
        found = captions.find_format(root)
        if found is None:
            raise DataError(f"{root}: not a captions file of a known format ({_looked_for()})")
        return found, root
    for format, files in captions.find_caption_files(root).items():
        return format, captions.choose_file(files, root, format=format)
    if any(root.glob("*.tar")) or any(root.glob("*/*.tar")):
        return "webdataset", root
    raise DataError(f"{root}: no captions found; looked for {_looked_for()}")


def find_captions_file(root: Path, format: str) -> Path:
    """Return the captions file of a given format.

    Raises:
        DataError: An unknown format, no captions file of that format, or several.
    """
    if format not in FORMATS:
        raise DataError(f"data.format={format}: expected auto or one of {', '.join(FORMATS)}")
    if root.is_file() or format == "webdataset":
        return root
    files = captions.find_caption_files(root).get(format)
    if files is None:
        raise DataError(f"{root}: no {format} captions found; looked for {NAMES[format]}")
    return captions.choose_file(files, root, format=format)


def _looked_for() -> str:
    return "; ".join(NAMES[name] for name in FORMATS)
