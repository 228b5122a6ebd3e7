"""Read paired folders: images/, sounds/ or audio/, and texts/, whose files share their stems."""

from collections.abc import Iterator
from pathlib import Path

from clip_common.errors import DataError, printable
from clip_common.images import IMAGE_SUFFIXES
from clip_common.sounds import SOUND_SUFFIXES
from clip_common.tables import read_lines
from edgeglass.data.records import Sample
from edgeglass.data.rows import name_split

FOLDERS = {"images": "image", "sounds": "audio", "audio": "audio", "texts": "text"}
"""Name of a folder → modality of its files."""

_SUFFIXES = {"image": IMAGE_SUFFIXES, "audio": SOUND_SUFFIXES, "text": (".txt",)}


def has_folders(root: Path) -> bool:
    """Return whether at least two modalities have a folder, directly or inside folders of splits."""
    places = [root, *(place for place in root.iterdir() if place.is_dir() and name_split([place.name]))]
    return len({FOLDERS[name] for place in places for name in FOLDERS if (place / name).is_dir()}) > 1


def read_folders(root: Path) -> Iterator[Sample]:
    """Yield one sample for each stem, sorted by split and stem; each line of a text file is a caption.

    Folders train/, val/ and test/ may be above or below those of the modalities; files may be in deeper folders, which
    are then part of the stem.

    Raises:
        DataError: Two files of one modality with the same stem, or a text file that cannot be read.
    """
    found: dict[tuple[str, str], dict[str, Path]] = {}
    for file in sorted(root.rglob("*")):
        place = _find_place(file.relative_to(root))
        if place is None or not file.is_file():
            continue
        modality, split, stem = place
        sample = found.setdefault((split, stem), {})
        if modality in sample:
            raise DataError(
                f"{printable(file)} and {printable(sample[modality])}: two files of one modality with the same stem: "
                "rename one"
            )
        sample[modality] = file
    for id, ((split, stem), files) in enumerate(sorted(found.items())):
        captions = (tuple(line for _, line in read_lines(files["text"])) or ("",)) if "text" in files else ()
        yield Sample(id, printable(stem), split, captions, files.get("image"), files.get("audio"))


def _find_place(path: Path) -> tuple[str, str, str] | None:
    """Return modality, split ("" if none) and stem of a path in the root; None for other files."""
    *folders, name = path.parts
    if any(part.startswith(".") for part in path.parts):
        return None
    split = ""
    if len(folders) > 1 and folders[0] not in FOLDERS and name_split(folders[:1]):
        split = name_split(folders[:1]) or ""
        folders = folders[1:]
    if not folders or folders[0] not in FOLDERS:
        return None
    modality, *below = folders
    if not split and below and name_split(below[:1]):
        split = name_split(below[:1]) or ""
        below = below[1:]
    if not name.lower().endswith(_SUFFIXES[FOLDERS[modality]]):
        return None
    return FOLDERS[modality], split, str(Path(*below, Path(name).stem))
