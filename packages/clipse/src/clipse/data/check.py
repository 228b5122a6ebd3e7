"""Check a captioned image set for problems, and count its contents."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from clip_common.backbones.tokenizers import SPECIAL_TOKENS, ClipTokenizer, find_cut
from clip_common.captions import SPLITS, Place, Problem
from clip_common.images import read_size
from clip_common.reporting import Progress
from clipse.data.equal_captions import normalise_caption
from clipse.data.loading import load_captions, read_set
from clipse.data.records import CaptionData, ImageRecord

CONTEXT_LENGTH = 77
"""Most tokens of a caption for CLIP; other text towers may read more or fewer."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Problems of a set, found by decoding every image in full.

    Attributes:
        root, format: The folder that was read, and its format.
        images: Split → number of usable images.
        captions: Split → number of captions.
        problems: Everything that cannot be used, in the order of files and lines.
        notes: What was chosen in reading: columns, and the folder of the images; one line each.
        unlisted: Number of captioned images without a split, when other images have one.
    """

    root: Path
    format: str
    images: dict[str, int]
    captions: dict[str, int]
    problems: list[Problem]
    notes: list[str]
    unlisted: int

    @property
    def ok(self) -> bool:
        """True if no problem was found."""
        return not self.problems


def check(
    root: str | Path,
    *,
    format: str = "auto",
    files: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Decode every image and read every caption; collect problems instead of raising them.

    Args:
        root, format, files, columns: As for `load_captions`.
        progress: Called while images are decoded.

    Raises:
        DataError: No captions are found at all.
    """
    data = read_set(root, format=format, files=files, columns=columns, decode=True, progress=progress)
    problems = sorted(data.problems, key=lambda problem: (str(problem.file), problem.line or 0))
    if len(data.images) < 2:
        text = f"{len(data.images)} usable image(s); image-text retrieval needs at least 2"
        problems.append(Problem("file", Place(data.root), text))
    return CheckReport(
        root=data.root,
        format=data.format,
        images={split: len(data.split(split)) for split in SPLITS},
        captions={split: sum(len(record.captions) for record in data.split(split)) for split in SPLITS},
        problems=problems,
        notes=[*data.notes, *_note_cut(data)],
        unlisted=data.unlisted,
    )


def _note_cut(data: CaptionData) -> list[str]:
    """Return a line about the captions that are too long for CLIP's text tower, if there are any."""
    captions = [caption for record in data.images for caption in record.captions]
    if max((len(caption.encode()) for caption in captions), default=0) <= CONTEXT_LENGTH - SPECIAL_TOKENS:
        return []  # a token holds at least one byte
    places = find_cut(ClipTokenizer({}), captions)
    if not places:
        return []
    what = f"{len(places):,} of {len(captions):,} captions have more than the {CONTEXT_LENGTH} tokens that CLIP reads"
    return [f"{what}, and training cuts their ends; the first is {shorten(captions[places[0]], 60)!r}"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of a set.

    Attributes:
        root, format: The folder that was read, and its format.
        rows: One mapping per split: split, images, captions, captions_per_image, words_mean, words_max, width_median,
            height_median (pixels).
        vocabulary: Number of distinct lower-case words in all captions.
        repeated_captions: Number of captions that another image has too: possible false negatives.
    """

    root: Path
    format: str
    rows: list[dict[str, float | int | str]]
    vocabulary: int
    repeated_captions: int


def stats(
    root: str | Path,
    *,
    format: str = "auto",
    files: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
) -> Stats:
    """Count images, captions, words and image sizes (from the headers; no pixels are decoded).

    Raises:
        DataError: The set cannot be used.
    """
    data = load_captions(root, format=format, files=files, columns=columns)
    texts = [[normalise_caption(caption) for caption in record.captions] for record in data.images]
    bearers = Counter(text for own in texts for text in set(own))
    return Stats(
        root=data.root,
        format=data.format,
        rows=[_row(split, data) for split in SPLITS if data.split(split)],
        vocabulary=len({word for record in data.images for caption in record.captions for word in _words(caption)}),
        repeated_captions=sum(bearers[text] > 1 for own in texts for text in own),
    )


def _row(split: str, data: CaptionData) -> dict[str, float | int | str]:
    records = data.split(split)
    lengths = [len(_words(caption)) for record in records for caption in record.captions]
    sizes = [_size(record) for record in records]
    return {
        "split": split,
        "images": len(records),
        "captions": len(lengths),
        "captions_per_image": len(lengths) / len(records),
        "words_mean": statistics.mean(lengths),
        "words_max": max(lengths),
        "width_median": statistics.median(width for width, _ in sizes),
        "height_median": statistics.median(height for _, height in sizes),
    }


def _words(caption: str) -> list[str]:
    return "".join(letter if letter.isalnum() or letter in "'-" else " " for letter in caption.lower()).split()


def _size(record: ImageRecord) -> tuple[int, int]:
    return read_size(record.path) if record.span is None else read_size(record.read(), name=record.name)
