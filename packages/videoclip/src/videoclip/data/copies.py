"""Copies of a video in two parts of a split: files of equal content, and files that show the same pictures."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

from clip_common.errors import DataError
from videoclip.data.fingerprints import find_copy, fingerprint_videos
from videoclip.data.records import ClipRecord

_Video = tuple[str, Path]
"""Subject and file."""


def check_no_copies(parts: Mapping[str, Sequence[ClipRecord]], *, fingerprints: Path | None = None) -> None:
    """Raise DataError if a video, or a copy of one, is in two parts.

    Files are compared by content, so that copies under other names are found; only files of equal size are read. The
    content of a folder of frames is that of its files. Then videos are compared by what moves in them
    (`data.fingerprints`), so that copies in another format, size or quality are found.

    Args:
        parts: Name → clips. Copies within one part are no leak.
        fingerprints: Folder of the videos' fingerprints; None computes those that this process does not know.

    Raises:
        DataError: Names the two videos.
    """
    videos = {
        part: sorted({(record.subject_id, record.video) for record in records}) for part, records in parts.items()
    }
    same_size: dict[int, list[tuple[str, _Video]]] = defaultdict(list)
    for part, some in videos.items():
        for subject, video in some:
            same_size[_file_state(video)[0]].append((part, (subject, video)))
    same_size.pop(0, None)  # missing or empty: nothing to learn from
    for group in same_size.values():
        if len({part for part, _ in group}) > 1:
            _check_contents(group)
    _check_pictures(videos, fingerprints)


def _check_contents(videos: Iterable[tuple[str, _Video]]) -> None:
    first: dict[bytes, tuple[str, _Video]] = {}
    for part, (subject, video) in videos:
        in_part, other = first.setdefault(_hash_content(video, *_file_state(video)), (part, (subject, video)))
        if in_part != part:
            raise _leak((in_part, other), (part, (subject, video)), "have the same content")


def _check_pictures(videos: Mapping[str, Sequence[_Video]], folder: Path | None) -> None:
    prints = fingerprint_videos((video for some in videos.values() for _, video in some), folder=folder)
    shown = {part: [each for each in some if each[1] in prints] for part, some in videos.items()}
    for one, other in combinations(shown, 2):
        found = find_copy(
            [prints[video] for _, video in shown[one]],
            [prints[video] for _, video in shown[other]],
        )
        if found is not None:
            row, column, alike = found
            what = f"have the same content, in other files (their movements correlate by {alike:.2f})"
            raise _leak((one, shown[one][row]), (other, shown[other][column]), what)


def _leak(one: tuple[str, _Video], other: tuple[str, _Video], what: str) -> DataError:
    named = [f"{video} of subject {subject} in {part}" for part, (subject, video) in (one, other)]
    return DataError(f"{' and '.join(named)} {what}: give both one subject_id, or leave one out")


def _file_state(video: Path) -> tuple[int, int]:
    """Return size in bytes and time of change in ns; of a folder, the sum and the latest; (0, 0) if missing."""
    states = [file.stat() for file in _files(video)]
    return sum(state.st_size for state in states), max((state.st_mtime_ns for state in states), default=0)


@cache
def _hash_content(video: Path, size: int, changed_ns: int) -> bytes:
    digests = []
    for file in _files(video):
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").digest())
    return hashlib.sha256(b"".join(sorted(digests))).digest()  # frames under other names are the same frames


def _files(video: Path) -> Iterable[Path]:
    if video.is_dir():
        return [file for file in video.iterdir() if file.is_file() and file.name[0] != "."]
    return [video] if video.exists() else []
