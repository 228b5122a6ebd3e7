"""Batches of one clip a subject: unique, full, as many as there can be, and the same after a resume."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_common.errors import DataError
from clip_common.loader import ResumableLoader
from videoclip.data.batches import SubjectUniqueBatchSampler, number_subjects
from videoclip.data.records import ClipRecord


def ranks(subjects, *, batch_size, world=1, epoch=0, seed=0):
    """Batches of all ranks: a list of steps, each with one batch a rank."""
    samplers = [
        SubjectUniqueBatchSampler(torch.tensor(subjects), batch_size=batch_size, seed=seed, rank=rank, world=world)
        for rank in range(world)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    steps = list(zip(*samplers, strict=True))
    assert len(steps) == len(samplers[0])
    return steps


def most_batches(subjects, size):
    """The most full batches, by trying: fill each from the subjects with the most clips left."""
    left, batches = Counter(subjects), 0
    while True:
        chosen = [subject for subject, _ in left.most_common(size)]
        if len(chosen) < size:
            return batches
        for subject in chosen:
            left[subject] -= 1
        left += Counter()
        batches += 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(1, 4), st.integers(1, 3), st.integers(0, 3),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_batches_are_unique_full_and_as_many_as_can_be(counts, batch_size, world, epoch, shuffler):
    subjects = [subject for subject, count in enumerate(counts) for _ in range(count)]
    shuffler.shuffle(subjects)
    size = batch_size * world
    if len(counts) < size:
        with pytest.raises(DataError):
            ranks(subjects, batch_size=batch_size, world=world)
        return
    steps = ranks(subjects, batch_size=batch_size, world=world, epoch=epoch)
    assert len(steps) == most_batches(subjects, size)
    rows = [row for step in steps for batch in step for row in batch]
    assert len(rows) == len(set(rows)) == len(steps) * size
    for step in steps:
        assert [len(batch) for batch in step] == [batch_size] * world
        assert len({subjects[row] for batch in step for row in batch}) == size


def test_subjects_are_numbered():
    records = [ClipRecord(str(row), subject, Path("a")) for row, subject in enumerate(["b", "a", "b", "ß", "a"])]
    assert number_subjects(records).tolist() == [0, 1, 0, 2, 1]


def test_numbers_of_subjects_may_have_gaps():
    (step,) = ranks([7, 900, 7], batch_size=2)
    assert {0, 1, 2} > set(step[0]) > {1}


def test_the_order_is_a_function_of_seed_and_epoch():
    subjects = [row % 8 for row in range(48)]
    orders = [ranks(subjects, batch_size=4, epoch=epoch, seed=seed) for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0))]
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert all(sorted(row for step in order for row in step[0]) == list(range(48)) for order in orders)


def test_more_ranks_share_the_batches_of_one():
    subjects = [row % 11 for row in range(60)]
    whole = ranks(subjects, batch_size=6)
    shared = ranks(subjects, batch_size=2, world=3)
    assert [set(step[0]) for step in whole] == [set().union(*step) for step in shared]


def test_who_meets_whom_is_not_fixed_within_an_epoch():
    subjects = [row % 20 for row in range(200)]  # 10 clips each, 40 batches of 5
    steps = ranks(subjects, batch_size=5)
    met = {frozenset(subjects[row] for row in step[0]) for step in steps}
    assert len(met) > 35
    pairs = {pair for batch in met for pair in itertools.combinations(sorted(batch), 2)}
    assert len(pairs) > 150  # of 190


def test_what_is_left_out_changes_from_epoch_to_epoch():
    subjects = [0] * 20 + list(range(1, 11))  # 11 subjects: at most one clip of 0 in each batch of 3
    used = [{row for step in ranks(subjects, batch_size=3, epoch=epoch) for row in step[0]} for epoch in range(60)]
    assert {len(rows) for rows in used} == {15}  # Σ min(n, 5) = 5 + 10 ≥ 15, and 5 + 11 < 18
    assert set().union(*used) == set(range(30))


@pytest.mark.parametrize("consumed", [0, 1, 5, 11])
def test_a_resume_in_mid_epoch_goes_on_with_the_next_batch(consumed):
    subjects = torch.arange(48) % 8

    def loader():
        sampler = SubjectUniqueBatchSampler(subjects, batch_size=4, seed=3)
        return ResumableLoader(subjects, batch_sampler=sampler, collate_fn=list)

    def epoch_of(one, epoch):
        one.set_epoch(epoch)
        return list(one)

    whole, first = loader(), loader()
    expected = epoch_of(whole, 2)
    first.set_epoch(2)
    assert list(itertools.islice(first, consumed)) == expected[:consumed]
    state = first.state_dict()
    assert state == {"epoch": 2, "batch": consumed}
    second = loader()
    second.load_state_dict(state)
    assert list(second) == expected[consumed:]
    assert epoch_of(second, 3) == epoch_of(whole, 3)


def test_a_sampler_s_own_state():
    sampler = SubjectUniqueBatchSampler(torch.arange(12) % 6, batch_size=3)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.load_state_dict({"epoch": 4, "batch": 2})
    assert list(sampler) == whole[2:]
    assert sampler.state_dict() == {"epoch": 4, "batch": 0}


def test_too_few_subjects_name_the_largest_batch():
    def refused(subjects, message, **knobs):
        with pytest.raises(DataError, match=message):
            SubjectUniqueBatchSampler(torch.tensor(subjects), **knobs)

    refused([0, 0, 1, 2], r"subject_unique: 3 training subjects .* 4 clips .*: set data\.batch_size to at most 3, ",
            batch_size=4)  # fmt: skip
    refused([0, 1, 2, 3, 4], r"5 training subjects do not fill a batch of 6 .* data\.batch_size to at most 4, ",
            batch_size=3, world=2)  # fmt: skip
    refused([0, 1], r"use at most 2 device\(s\), or set data\.batches=shuffled$", batch_size=1, world=3)
    SubjectUniqueBatchSampler(torch.tensor([0, 1, 2, 3, 4]), batch_size=2, world=2)
