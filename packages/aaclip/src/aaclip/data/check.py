"""The check of a set (`aaclip data check`): its contents, and every file that cannot be used."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from aaclip.data.records import Dataset, Record
from clip_common.errors import DataError
from clip_common.images import read_image, read_mask
from clip_common.reporting import Progress


@dataclass(slots=True)
class Count:
    """Pictures of one class and split.

    Attributes:
        class_name, split: Class and split.
        normal, anomalous: Pictures of each label.
        masked: Anomalous pictures with a mask.
    """

    class_name: str
    split: str
    normal: int = 0
    anomalous: int = 0
    masked: int = 0


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Result of reading every file of a set.

    Attributes:
        root, format: The set.
        counts: One row for each class and split, by name; broken pictures count too.
        problems: One line for each problem.
    """

    root: Path
    format: str
    counts: list[Count]
    problems: list[str]

    @property
    def ok(self) -> bool:
        """True if no problem was found."""
        return not self.problems


def check(dataset: Dataset, *, progress: Progress | None = None) -> CheckReport:
    """Read every picture and mask once, and collect problems instead of raising them.

    Args:
        dataset: Result of `read_dataset`.
        progress: Called as `progress(done, total)`.
    """
    counts: dict[tuple[str, str], Count] = {}
    records = dataset.records
    for record in records:
        count = counts.setdefault((record.class_name, record.split), Count(record.class_name, record.split))
        count.normal += not record.anomalous
        count.anomalous += record.anomalous
        count.masked += record.anomalous and record.mask is not None
    found = list(dataset.problems)
    with ThreadPoolExecutor() as pool:  # PIL decodes without holding the interpreter's lock
        for done, lines in enumerate(pool.map(lambda record: list(_problems(record)), records), start=1):
            found += lines
            if progress is not None:
                progress(done, len(records))
    return CheckReport(dataset.root, dataset.format, [counts[key] for key in sorted(counts)], found)


def _problems(record: Record) -> Iterator[str]:
    try:
        size = read_image(record.image).size
    except DataError as error:
        yield str(error)
        return
    if record.mask is None:
        return
    try:
        marked = read_mask(record.mask, size=size).any()
    except DataError as error:
        yield str(error)
        return
    if record.anomalous and not marked:
        yield f"{record.mask}: marks nothing, though {record.image} is anomalous"
    if marked and not record.anomalous:
        yield f"{record.mask}: marks a defect, though {record.image} is normal"
