"""Splits: whole subjects, every class, no video twice; and what is kept of them in the low-data protocols."""

import itertools
import os
import random
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clip_common.errors import DataError
from videoclip.config import DataConfig
from videoclip.data.lowdata import keep_clips, keep_subjects
from videoclip.data.records import ClipRecord
from videoclip.data.splits import Split, check_disjoint, make_split, make_splits, missing_classes, subject_folds


def clips(*people: str, per: int = 3, fold: int | None = None) -> list[ClipRecord]:
    """`"a0"` is subject a, class 0."""
    return [
        ClipRecord(
            clip_id=f"{who[0]}{n}", subject_id=who[0], video=Path(f"{who[0]}.mp4"), label=int(who[1:]), fold=fold
        )
        for who in people
        for n in range(per)
    ]


def people(records) -> str:
    return "".join(sorted({record.subject_id for record in records}))


@st.composite
def populations(draw) -> list[ClipRecord]:
    """4 to 14 subjects of 1 to 3 classes, some with clips of several, some clips without a label."""
    records = []
    for subject in range(draw(st.integers(4, 14))):
        main = draw(st.sampled_from([0, 1, 2]))
        for number in range(draw(st.integers(1, 5))):
            label = draw(st.sampled_from([main] * 8 + [0, None]))
            records.append(ClipRecord(f"c{subject}-{number}", f"s{subject}", Path("gone.mp4"), label=label))
    return records


def folds_or_none(records, *, folds, seed):
    try:
        return subject_folds(records, folds=folds, seed=seed)
    except DataError:  # a class of one subject, for example: tested below, each by itself
        return None


@settings(max_examples=60, deadline=None)
@given(populations(), st.integers(3, 4), st.integers(0, 5), st.randoms(use_true_random=False))
def test_splits_are_whole_whatever_the_order_of_the_records(records, folds, seed, shuffler):
    splits = folds_or_none(records, folds=folds, seed=seed)
    assume(splits is not None)
    assert len(splits) == folds
    every = {record.clip_id for record in records}
    tested = [record.clip_id for split in splits for record in split.test]
    assert len(tested) == len(every)
    assert set(tested) == every
    for split in splits:
        parts = [{record.subject_id for record in part} for part in split.parts().values()]
        assert all(parts)
        assert not any(one & other for one, other in itertools.combinations(parts, 2))
        assert {record.clip_id for part in split.parts().values() for record in part} == every
        assert "train" not in missing_classes(split)
        # of a class that two others of the pool could teach, one is validated on
        pool = {subject: set() for subject in parts[0] | parts[1]}
        for record in (*split.train, *split.val):
            pool[record.subject_id].add(record.label)
        if all(len(labels) == 1 for labels in pool.values()):
            for label in set().union(*pool.values()):
                having = sum(label in labels for labels in pool.values())
                validated = sum(label in pool[subject] for subject in parts[1])
                assert validated == (0 if having == 1 else max(1, round(having / 4)))
    shuffled = records.copy()
    shuffler.shuffle(shuffled)
    assert subject_folds(shuffled, folds=folds, seed=seed) == splits


def test_each_part_has_its_share_of_each_class():
    records = clips(*(f"{name}{index % 3}" for index, name in enumerate("abcdefghijklmno")))
    sizes = [
        [sum(record.label == label for record in split.test) for label in range(3)]
        for split in subject_folds(records, folds=5, seed=0)
    ]
    assert sizes == [[3, 3, 3]] * 5
    seeds = [tuple(people(split.test) for split in subject_folds(records, folds=5, seed=seed)) for seed in range(3)]
    assert len(set(seeds)) == 3


def test_validation_is_about_a_quarter_and_differs_from_fold_to_fold():
    records = clips(*(f"{name}{index % 2}" for index, name in enumerate("abcdefghijklmnopqrst")))
    splits = subject_folds(records, folds=5, seed=1)
    assert [len(people(split.val)) for split in splits] == [4] * 5  # 16 are not tested on
    assert len({people(split.val) for split in splits}) > 1


def test_a_rare_class_draws_no_warning_and_is_named_where_it_is_missing():
    records = clips("a0", "b0", "c0", "d0", "e0", "f0", "x1", "y1", per=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = subject_folds(records, folds=5, seed=0)
    holding = [split for split in splits if {"x", "y"} & set(people(split.test))]
    assert len(holding) == 2
    assert all(missing_classes(split) == {"val": (1,)} for split in holding)
    others = [split for split in splits if split not in holding]
    assert all(missing_classes(split) == {"test": (1,)} for split in others)


def test_too_few_people():
    with pytest.raises(DataError, match=r"^data\.folds=5 needs as many subjects, there are 4: lower it$"):
        subject_folds(clips("a0", "b0", "c1", "d1"), folds=5, seed=0)
    with pytest.raises(
        DataError, match=r"^data\.folds=4 needs a class with as many clips, the largest has 3: lower it$"
    ):
        subject_folds(clips("a0", "b0", "c0", "d1", "e1", per=1), folds=4, seed=0)
    with pytest.raises(DataError, match=r"^fold \d tests on all subjects of class 2 \(x\) and leaves none to train on"):
        subject_folds(clips("a0", "b0", "c0", "d0", "x2"), folds=3, seed=0)
    pairs = [*clips("a0", "b1", fold=0), *clips("c0", "d1", fold=1)]
    with pytest.raises(DataError, match=r"^fold 0: 2 subject\(s\) are not tested on, too few to train and to validate"):
        subject_folds(pairs, folds=3, seed=0)


# the fold column


def column(*parts: tuple[str, ...]) -> list[ClipRecord]:
    return [record for number, names in enumerate(parts) for record in clips(*names, fold=number)]


def test_the_fold_column_decides():
    records = column(("a0", "b1"), ("c0", "d1"), ("e0", "f1"))
    splits = subject_folds(random.Random(0).sample(records, len(records)), folds=5, seed=0)
    assert [people(split.test) for split in splits] == ["ab", "cd", "ef"]
    assert all(len(people(split.val)) == 2 and missing_classes(split) == {} for split in splits)
    assert people(make_split(records, DataConfig(fold=2)).test) == "ef"
    with pytest.raises(DataError, match=r"^data\.fold=3: the fold column has parts 0 to 2$"):
        make_split(records, DataConfig(fold=3))


def test_mistakes_in_the_fold_column():
    records = column(("a0", "b1"), ("c0", "d1"), ("e0", "f1"))

    def refused(changed, message):
        with pytest.raises(DataError, match=message):
            subject_folds(changed, folds=3, seed=0)

    refused(
        [replace(records[0], fold=2), *records[1:]], r"^subject a is in folds 0 and 2: a subject belongs to one fold$"
    )
    refused(
        [replace(records[0], fold=None), *records[1:]], r"^clip a0 has no fold, though others have: fill the column"
    )
    refused(
        [replace(r, fold=r.fold + 1) for r in records], r"^the fold column holds 1, 2, 3: expected .* numbered from 0"
    )
    refused(
        [replace(r, fold=2 * r.fold) for r in records], r"^the fold column holds 0, 2, 4: expected .* without gaps$"
    )
    refused([replace(r, fold=0) for r in records], r"^the fold column holds 0: expected at least two parts")
    refused(
        column(("a0", "b1"), ("c1", "d1"), ("e1", "f1")), r"^fold 0 tests on all subjects of class 0 \(a\) and leaves "
    )


# leaks


@pytest.fixture
def split(tmp_path) -> Split:
    records = [
        replace(record, video=tmp_path / record.video)
        for record in clips("a0", "b0", "c0", "d1", "e1", "f1", "g0", "h1")
    ]
    for number, record in enumerate(records):
        record.video.write_bytes(bytes([number]) * 100)
    return subject_folds(records, folds=3, seed=0)[0]


def test_clips_of_one_video_within_a_part_are_no_leak(split):
    check_disjoint(split)


def test_a_subject_in_two_parts(split):
    moved = replace(split.train[0], clip_id="again")
    with pytest.raises(
        DataError, match=rf"^subject {moved.subject_id} is in train and in test: a subject belongs to one"
    ):
        check_disjoint(replace(split, test=(*split.test, moved)))


@pytest.mark.parametrize("how", ["copy", "link", "same"])
@pytest.mark.parametrize("part", ["val", "test"])
def test_a_video_in_two_parts_under_another_name(split, tmp_path, how, part):
    mine, theirs = split.train[0], split.parts()[part][0]
    again = mine.video if how == "same" else tmp_path / "ünder other name.mp4"
    if how == "copy":
        again.write_bytes(mine.video.read_bytes())
        os.utime(again, (0, 0))
    elif how == "link":
        again.symlink_to(mine.video)
    leaky = replace(split, **{part: (replace(theirs, video=again), *split.parts()[part][1:])})
    with pytest.raises(DataError) as raised:
        check_disjoint(leaky)
    assert str(raised.value) == (
        f"{mine.video} of subject {mine.subject_id} in train and {again} of subject {theirs.subject_id} in {part} have "
        "the same content: give both one subject_id, or leave one out"
    )


def test_a_folder_of_frames_under_other_names(split, tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder, prefix in zip(folders, "ab", strict=True):
        folder.mkdir()
        for number in range(3):
            (folder / f"{prefix}{number}.png").write_bytes(bytes([number]) * 9)
    (folders[1] / ".DS_Store").write_bytes(b"x")
    mine, theirs = (replace(r, video=f) for r, f in zip((split.train[0], split.test[0]), folders, strict=True))
    leaky = replace(split, train=(mine, *split.train[1:]), test=(theirs, *split.test[1:]))
    with pytest.raises(DataError, match="have the same content"):
        check_disjoint(leaky)
    (folders[1] / "b1.png").write_bytes(bytes([7]) * 9)
    check_disjoint(leaky)


def test_a_file_that_changes_is_read_again(split):
    mine, theirs = split.train[0].video, split.test[0].video
    before = theirs.read_bytes()
    theirs.write_bytes(mine.read_bytes())
    os.utime(theirs, ns=(1, 1))
    with pytest.raises(DataError, match="have the same content"):
        check_disjoint(split)
    theirs.write_bytes(before)
    os.utime(theirs, ns=(2, 2))
    check_disjoint(split)


def test_missing_and_empty_videos_leak_nothing(split):
    for video in {record.video for part in split.parts().values() for record in part}:
        video.write_bytes(b"")
    check_disjoint(split)
    split.train[0].video.unlink()
    split.test[0].video.unlink()
    check_disjoint(split)


def test_every_split_is_checked_for_leaks(split, tmp_path):
    records = [record for part in split.parts().values() for record in part]
    make_split(records, DataConfig(folds=3))
    for video in {record.video for record in records}:
        video.write_bytes(b"all alike")
    with pytest.raises(DataError, match="have the same content"):
        make_split(records, DataConfig(folds=3, subjects=2))


# low data


@settings(max_examples=60, deadline=None)
@given(populations(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_fewer_subjects_are_among_more(records, seed, shuffler):
    count = len({record.subject_id for record in records})
    shuffled = records.copy()
    shuffler.shuffle(shuffled)
    before = None
    for kept in range(count, 0, -1):
        try:
            some = keep_subjects(records, count=kept, seed=seed)
        except DataError:
            break
        assert some == keep_subjects(shuffled, count=kept, seed=seed)
        names = {record.subject_id for record in some}
        assert len(names) == kept
        assert set(some) == {record for record in records if record.subject_id in names}
        assert before is None or names < before
        before = names
    assert before is not None


def test_of_each_class_its_share():
    records = clips(*(f"{name}0" for name in "abcdefghijkl"), *(f"{name}1" for name in "mnop"), *("x2", "y2"))
    shares = {
        count: [sum(r.label == label for r in keep_subjects(records, count=count, seed=0)) // 3 for label in range(3)]
        for count in (3, 6, 9, 18)
    }
    assert shares == {3: [1, 1, 1], 6: [3, 2, 1], 9: [6, 2, 1], 18: [12, 4, 2]}
    picks = {people(keep_subjects(records, count=6, seed=seed)) for seed in range(4)}
    assert len(picks) > 1
    with pytest.raises(
        DataError, match=r"^data\.subjects=2: expected 3 \(one per class\) to 18 \(all training subjects\)$"
    ):
        keep_subjects(records, count=2, seed=0)
    with pytest.raises(DataError, match=r"^data\.subjects=19: expected 3"):
        keep_subjects(records, count=19, seed=0)


@settings(max_examples=60, deadline=None)
@given(populations(), st.floats(0.01, 1), st.floats(0.01, 1))
def test_fewer_clips_of_everybody_are_among_more(records, one, other):
    less, more = (keep_clips(records, fraction=part, seed=0) for part in sorted((one, other)))
    assert set(less) <= set(more) <= set(records)
    assert people(less) == people(records)
    assert set(keep_clips(records, fraction=1, seed=0)) == set(records)
    assert keep_clips(records[::-1], fraction=one, seed=0) == keep_clips(records, fraction=one, seed=0)


def test_a_share_of_the_clips_by_hand():
    records = [*clips("a0", per=10), *clips("b1", per=4), *clips("c1", per=1)]
    kept = keep_clips(records, fraction=0.3, seed=0)
    assert [sum(record.subject_id == name for record in kept) for name in "abc"] == [3, 1, 1]
    assert kept != keep_clips(records, fraction=0.3, seed=1)


def test_only_the_training_part_is_reduced():
    records = clips(*(f"{name}{index % 2}" for index, name in enumerate("abcdefghijkl")), per=4)
    whole = make_split(records, DataConfig(folds=3))
    less = make_split(records, DataConfig(folds=3, subjects=3, train_fraction=0.5))
    assert (less.val, less.test) == (whole.val, whole.test)
    assert len(less.train) == 6
    assert set(less.train) < set(whole.train)
    assert len(people(less.train)) == 3
    each = [make_split(records, DataConfig(folds=3, fold=fold, subjects=3, train_fraction=0.5)) for fold in range(3)]
    assert make_splits(records, DataConfig(folds=3, subjects=3, train_fraction=0.5)) == each
    assert each[0] == less


def test_a_class_that_low_data_would_lose():
    mixed = [
        replace(record, label=2) if record.clip_id[1] == "0" else record for record in clips("a0", "b0", "c1", "d1")
    ]
    records = [*mixed, *clips("e0", "f1", "g0", "h1")]
    lost = 0
    for seed in range(20):
        config = DataConfig(folds=3, split_seed=seed, subjects=2, train_fraction=0.3)
        try:
            make_split(records, config)
        except DataError as error:
            lost += str(error).startswith("data.subjects=2 and data.train_fraction=0.3 leave no training clip of class")
    assert lost > 0
