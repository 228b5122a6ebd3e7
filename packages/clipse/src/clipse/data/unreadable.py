"""Find the images of a set that cannot be read."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from clip_common.errors import DataError
from clip_common.reporting import Progress
from clipse.data.records import ImageRecord


def find_unreadable(records: Sequence[ImageRecord], *, progress: Progress | None = None) -> dict[int, str]:
    """Return record id -> problem in one line, for every image that does not decode in full.

    Images are decoded in threads, because Pillow releases the interpreter lock.
    """

    def problem(record: ImageRecord) -> str | None:
        try:
            record.load_image()
        except DataError as error:
            return str(error)
        return None

    found: dict[int, str] = {}
    with ThreadPoolExecutor() as pool:
        for done, (record, message) in enumerate(zip(records, pool.map(problem, records), strict=True), start=1):
            if message is not None:
                found[record.id] = message
            if progress is not None:
                progress(done, len(records))
    return found
