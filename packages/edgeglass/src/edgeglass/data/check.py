"""Check a set of samples for problems, and count what it holds."""

from dataclasses import dataclass
from pathlib import Path

from clip_common.captions import SPLITS, ReadLog
from clip_common.errors import DataError
from clip_common.reporting import Progress
from edgeglass.config import MODALITIES
from edgeglass.data.inspection import find_copies, inspect
from edgeglass.data.loading import check_pairs, drop_empty_captions, drop_sources, find_missing, list_samples

PAIRS = (("image", "text"), ("audio", "text"), ("image", "audio"))


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Problems and contents of a set, found by decoding every image and every sound in full.

    Attributes:
        root, format: The file or folder that was read, and its format.
        samples: Split → number of usable samples.
        captions: Split → number of captions.
        modalities: Split → modality → number of samples that have it.
        pairs: Split → pair, such as `image-text` → number of samples that have both.
        problems: One line for each bad row of a caption file, each missing or unreadable image or sound and each empty
            caption; and for a set that cannot be aligned.
        remarks: One line for each silent or clipped sound, and for contents that are in two splits.
        unlisted: Number of samples without a split, when other samples have one.
    """

    root: Path
    format: str
    samples: dict[str, int]
    captions: dict[str, int]
    modalities: dict[str, dict[str, int]]
    pairs: dict[str, dict[str, int]]
    problems: list[str]
    remarks: list[str]
    unlisted: int

    @property
    def ok(self) -> bool:
        """True if no problem was found."""
        return not self.problems


def check(root: str | Path, *, format: str = "auto", progress: Progress | None = None) -> CheckReport:
    """Decode every image and sound and read every caption; collect problems instead of raising them.

    Args:
        root: File or folder of samples.
        format: `auto`, or one of `formats.FORMATS`.
        progress: Called while images and sounds are decoded.

    Raises:
        DataError: The set cannot be read at all: no known files, a broken list, a file in two splits.
        ImportError: The format needs a library that is not installed.
    """
    root = Path(root)
    log = ReadLog()
    format, listed, unlisted = list_samples(root, format=format, split_seed=0, log=log)
    samples, empty = drop_empty_captions(listed)
    missing = find_missing(samples)
    samples = drop_sources(samples, missing)
    findings = list(inspect(samples, progress=progress))
    broken = {finding.source: finding.problem for finding in findings if finding.problem is not None}
    remarks = [finding.remark for finding in findings if finding.remark is not None]
    remarks += find_copies(samples, findings)
    samples = [sample for sample in drop_sources(samples, broken) if sample.modalities]
    problems = [*map(str, log.problems), *missing.values(), *broken.values(), *empty]
    try:
        check_pairs(samples, root=root)
    except DataError as error:
        problems.append(str(error))
    in_split = {split: [sample for sample in samples if sample.split == split] for split in SPLITS}
    return CheckReport(
        root=root,
        format=format,
        samples={split: len(members) for split, members in in_split.items()},
        captions={split: sum(len(sample.captions) for sample in members) for split, members in in_split.items()},
        modalities={
            split: {modality: sum(sample.has(modality) for sample in members) for modality in MODALITIES}
            for split, members in in_split.items()
        },
        pairs={
            split: {
                "-".join(pair): sum(sample.has(pair[0]) and sample.has(pair[1]) for sample in members) for pair in PAIRS
            }
            for split, members in in_split.items()
        },
        problems=problems,
        remarks=remarks,
        unlisted=unlisted,
    )
