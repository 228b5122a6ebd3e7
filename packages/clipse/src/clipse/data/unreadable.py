"""Find the images of a set that cannot be read."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from clip_common import images
from clip_common.errors import DataError
from clip_common.file_facts import FileFacts
from clip_common.reporting import Progress
from clipse.data.records import ImageRecord


def find_unreadable(
    records: Sequence[ImageRecord], *, cache: Path | None = None, progress: Progress | None = None
) -> dict[int, str]:
    """Return record id -> problem in one line, for every image that does not decode in full.

    Images are decoded in threads, because Pillow releases the interpreter lock.

    Args:
        records: The images.
        cache: Folder in which the answers are kept: an image is decoded again only after it has changed.
        progress: Called while images are decoded.
    """
    facts = None if cache is None else FileFacts(cache / f"readable-{images.VERSION}.json")

    def decode(record: ImageRecord) -> str:
        try:
            record.load_image()
        except DataError as error:
            return str(error)
        return ""

    def problem(record: ImageRecord) -> str:
        if facts is None:
            return decode(record)
        return facts.recall(record.path, partial(decode, record), part="" if record.span is None else str(record.span))

    found: dict[int, str] = {}
    with ThreadPoolExecutor() as pool:
        for done, (record, message) in enumerate(zip(records, pool.map(problem, records), strict=True), start=1):
            if message:
                found[record.id] = message
            if progress is not None:
                progress(done, len(records))
    if facts is not None:
        facts.save()
    return found
