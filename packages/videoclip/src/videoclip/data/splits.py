"""Train, validation and test splits by subject: no subject, and no copy of a video, is in two of them."""

import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clip_common.errors import DataError
from videoclip.config import DataConfig
from videoclip.data.copies import check_no_copies
from videoclip.data.lowdata import hash_key, keep_clips, keep_subjects
from videoclip.data.records import ClipRecord, group_by_subject

_ClipsOfSubject = Mapping[str, list[ClipRecord]]


@dataclass(frozen=True)
class Split:
    """Training, validation and test clips, each sorted by subject and clip name."""

    train: tuple[ClipRecord, ...]
    val: tuple[ClipRecord, ...]
    test: tuple[ClipRecord, ...]

    def parts(self) -> dict[str, tuple[ClipRecord, ...]]:
        """Return the parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def make_split(records: Sequence[ClipRecord], config: DataConfig, *, fingerprints: Path | None = None) -> Split:
    """Return the split of `config.fold`, checked for leaks and reduced by `subjects` and `train_fraction`.

    Args:
        records: All clips.
        config: The fold, and what is kept of the training part.
        fingerprints: As for `check_disjoint`.

    Raises:
        DataError: As `subject_folds`, `check_disjoint` and `keep_subjects`; or no such fold, or a class without
            training clips.
    """
    splits = subject_folds(records, folds=config.folds, seed=config.split_seed)
    if config.fold >= len(splits):
        raise DataError(f"data.fold={config.fold}: the fold column has parts 0 to {len(splits) - 1}")
    check_disjoint(splits[config.fold], fingerprints=fingerprints)
    return _reduce_training(splits[config.fold], config)


def make_splits(records: Sequence[ClipRecord], config: DataConfig, *, fingerprints: Path | None = None) -> list[Split]:
    """Return what `make_split` returns, for every fold.

    Raises:
        DataError: As `make_split`.
    """
    splits = subject_folds(records, folds=config.folds, seed=config.split_seed)
    for split in splits:
        check_disjoint(split, fingerprints=fingerprints)
    return [_reduce_training(split, config) for split in splits]


def _reduce_training(split: Split, config: DataConfig) -> Split:
    train: Sequence[ClipRecord] = split.train
    if config.subjects is not None:
        train = keep_subjects(train, count=config.subjects, seed=config.split_seed)
    train = keep_clips(train, fraction=config.train_fraction, seed=config.split_seed)
    lost = _classes(split.train) - _classes(train)
    if lost:
        raise DataError(
            f"data.subjects={config.subjects} and data.train_fraction={config.train_fraction:g} leave no training clip "
            f"of class {min(lost)}: raise them"
        )
    return replace(split, train=tuple(train))


def subject_folds(records: Sequence[ClipRecord], *, folds: int, seed: int) -> list[Split]:
    """Return the splits of a cross-validation: each part is tested once, and every clip is in exactly one part.

    Parts are those of the fold column, if there is one, numbered from 0; `folds` is ignored then. Otherwise subjects
    are assigned so that each part has its share of the clips of each class. Validation takes about a quarter of the
    remaining subjects of each class, at least one, but never the last one to train on. Clips without a label count as
    a class of their own. The order of the records does not matter.

    Args:
        records: All clips.
        folds: Number of parts.
        seed: Seed of the assignment to parts and to validation.

    Raises:
        DataError: Fewer subjects than parts; a class without training clips; no validation subject; a fold column
            with gaps, or with a subject in two parts.
    """
    people = group_by_subject(records)
    given = any(record.fold is not None for record in records)
    parts = _parts_of_column(people) if given else _deal_parts(people, folds=folds, seed=seed)
    splits = []
    for number, tested in enumerate(parts):
        rest = {subject: clips for subject, clips in people.items() if subject not in tested}
        validated = _choose_validation(rest, seed=seed, number=number)
        split = Split(
            train=_clips(people, rest.keys() - validated),
            val=_clips(people, validated),
            test=_clips(people, tested),
        )
        _check_classes(split, number=number)
        if not split.val:
            raise DataError(
                f"fold {number}: {len(rest)} subject(s) are not tested on, too few to train and to validate on: "
                "a class needs two of them"
            )
        splits.append(split)
    return splits


def missing_classes(split: Split) -> dict[str, tuple[int, ...]]:
    """Return part → classes that it lacks but another part has; only for parts that lack one."""
    classes = {name: _classes(records) for name, records in split.parts().items()}
    every = set().union(*classes.values())
    return {name: tuple(sorted(every - own)) for name, own in classes.items() if every - own}


def check_disjoint(split: Split, *, fingerprints: Path | None = None) -> None:
    """Raise DataError if a subject, or a video of the same content, is in two parts of a split.

    Names that differ only by case or leading zeros may be one subject. Videos are compared as `check_no_copies` does.

    Args:
        split: The parts.
        fingerprints: Folder of the videos' fingerprints; None computes those that this process does not know.

    Raises:
        DataError: Names the subjects, or the two videos.
    """
    named: dict[str, tuple[str, str]] = {}
    for part, records in split.parts().items():
        for subject in dict.fromkeys(record.subject_id for record in records):
            other, in_part = named.setdefault(fold_name(subject), (subject, part))
            if in_part != part and other == subject:
                raise DataError(f"subject {subject} is in {in_part} and in {part}: a subject belongs to one part")
            if in_part != part:
                raise DataError(
                    f"subjects {other} in {in_part} and {subject} in {part} differ only by case or zeros: give both "
                    "one subject_id if they are one person, otherwise names that differ more"
                )
    check_no_copies(split.parts(), fingerprints=fingerprints)


def fold_name(subject: str) -> str:
    """Return a subject's name without what spellings of one name differ by: case, and zeros before a number."""
    return re.sub(r"0+(?=\d)", _drop_leading_zeros, unicodedata.normalize("NFKC", subject).casefold())


def _drop_leading_zeros(zeros: re.Match[str]) -> str:
    inside = zeros.start() > 0 and zeros.string[zeros.start() - 1].isdigit()
    return zeros[0] if inside else ""  # 100 keeps its zeros


def _parts_of_column(people: _ClipsOfSubject) -> list[set[str]]:
    parts: dict[int, set[str]] = defaultdict(set)
    for subject, clips in people.items():
        undecided = [clip.clip_id for clip in clips if clip.fold is None]
        if undecided:
            raise DataError(f"clip {undecided[0]} has no fold, though others have: fill the column, or leave it out")
        numbers = sorted({clip.fold for clip in clips if clip.fold is not None})
        if len(numbers) > 1:
            raise DataError(
                f"subject {subject} is in folds {numbers[0]} and {numbers[1]}: a subject belongs to one fold"
            )
        parts[numbers[0]].add(subject)
    if sorted(parts) != list(range(len(parts))) or len(parts) < 2:
        raise DataError(
            f"the fold column holds {', '.join(map(str, sorted(parts)))}: expected at least two parts, numbered from 0 "
            "without gaps"
        )
    return [parts[number] for number in sorted(parts)]


def _deal_parts(people: _ClipsOfSubject, *, folds: int, seed: int) -> list[set[str]]:
    from sklearn.model_selection import StratifiedGroupKFold

    if len(people) < folds:
        raise DataError(f"data.folds={folds} needs as many subjects, there are {len(people)}: lower it")
    subjects = [subject for subject, clips in people.items() for _ in clips]
    labels = [_label(clip) for clips in people.values() for clip in clips]
    most = max(labels.count(label) for label in set(labels))
    if most < folds:
        raise DataError(f"data.folds={folds} needs a class with as many clips, the largest has {most}: lower it")
    dealer = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class may be in fewer parts than folds: see missing_classes
        tests = [tested for _, tested in dealer.split(subjects, labels, groups=subjects)]
    return [{subjects[row] for row in tested} for tested in tests]


def _choose_validation(people: _ClipsOfSubject, *, seed: int, number: int) -> set[str]:
    """Choose about a quarter of the subjects of each class, rarest class first; a subject may have several classes."""
    having: dict[int, set[str]] = defaultdict(set)
    for subject, clips in people.items():
        for clip in clips:
            having[_label(clip)].add(subject)
    chosen: set[str] = set()
    drawn = sorted(people, key=lambda subject: hash_key(seed, "validation", number, subject))
    for label in sorted(having, key=lambda label: (len(having[label]), label)):
        wanted = max(1, round(len(having[label]) / 4))
        for subject in drawn:
            spared = all(
                own - chosen != {subject} for own in having.values()
            )  # keep the last subject of a class for training
            if subject in having[label] - chosen and spared and len(having[label] & chosen) < wanted:
                chosen.add(subject)
    return chosen


def _check_classes(split: Split, *, number: int) -> None:
    for label in missing_classes(split).get("train", ()):
        holders = sorted({record.subject_id for record in (*split.val, *split.test) if record.label == label})
        named = ", ".join(holders[:3]) + (", …" if len(holders) > 3 else "")
        raise DataError(
            f"fold {number} tests on all subjects of class {label} ({named}) and leaves none to train on: a class "
            "needs two subjects, in different folds"
        )


def _classes(records: Iterable[ClipRecord]) -> set[int]:
    return {record.label for record in records if record.label is not None}


def _label(record: ClipRecord) -> int:
    return -1 if record.label is None else record.label


def _clips(people: _ClipsOfSubject, subjects: Iterable[str]) -> tuple[ClipRecord, ...]:
    return tuple(record for subject in sorted(subjects) for record in people[subject])
