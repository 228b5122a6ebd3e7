"""Files, folders and globs to pictures."""

from collections.abc import Sequence
from pathlib import Path

from aaclip.data.trees import SUFFIXES
from clip_common.errors import DataError


def files_of(sources: Sequence[str], *, without: Path | None = None) -> list[Path]:
    """The pictures that files, folders (to any depth) and globs stand for, in the order of their names.

    Args:
        sources: Hidden files in a folder are no pictures of it.
        without: Folder of earlier outputs, which are not looked at in turn when they lie in a folder of pictures.

    Raises:
        DataError: Nothing is there, or a folder without pictures.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if _is_picture_of(path, file, without=without))
        elif path.exists():
            inside = [path]
        else:
            matching = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
            inside = sorted(file for file in matching if file.is_file())
        if not inside:
            kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise DataError(f"{source}: no picture there ({kinds}); name a file, a folder or a glob")
        found += inside
    return list(dict.fromkeys(found))


def _is_picture_of(folder: Path, file: Path, *, without: Path | None) -> bool:
    if file.suffix.lower() not in SUFFIXES or not file.is_file():
        return False
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and not (without is not None and file.absolute().is_relative_to(without.absolute()))
