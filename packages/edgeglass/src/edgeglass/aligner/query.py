"""Queries as people type them: words, and files of images and sounds."""

from collections.abc import Sequence
from pathlib import Path

from clip_common.errors import DataError, printable
from edgeglass.aligner.items import SUFFIXES


def parse_query(arguments: Sequence[str], *, image: Path | None = None, audio: Path | None = None) -> list[str | Path]:
    """Return the items of a query: the files among the arguments, and all other arguments joined as words.

    Args:
        arguments: Words, or paths of files.
        image: An image file too.
        audio: A sound file too.

    Raises:
        ValueError: Nothing to search for, or an image or a sound file that does not exist.
    """
    words: list[str] = []
    files: list[Path] = []
    for argument in arguments:
        if _is_file(argument):
            files.append(Path(argument))
        elif any(Path(argument).suffix.lower() in suffixes for suffixes in SUFFIXES.values()):
            raise DataError(f"{printable(argument)}: no such file: give an existing image or sound, or words")
        else:
            words.append(argument)
    for file in (image, audio):
        if file is not None:
            if not file.is_file():
                raise DataError(f"{printable(file)}: no such file: give an existing image or sound")
            files.append(file)
    query: list[str | Path] = [*([" ".join(words)] if words else []), *files]
    if not query:
        raise ValueError("nothing to search for: give words, an image file or a sound file")
    return query


def _is_file(argument: str) -> bool:
    try:
        return Path(argument).is_file()
    except OSError:  # words too long for a name
        return False
