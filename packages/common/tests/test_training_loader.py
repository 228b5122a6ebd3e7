"""Loaders that resume at the next batch."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from clip_common.training import ResumableLoader, ShuffledBatchSampler, original_errors


class Rows(Dataset):
    """A row is (epoch, index)."""

    epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return self.epoch, index


def loader(*, workers=0, seed=0):
    sampler = ShuffledBatchSampler(23, batch_size=4, seed=seed)
    return ResumableLoader(Rows(), batch_sampler=sampler, collate_fn=list, num_workers=workers)


def epoch_of(a_loader, epoch):
    a_loader.set_epoch(epoch)
    return list(a_loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_a_function_of_seed_and_epoch(workers):
    some = loader(workers=workers)
    epochs = [epoch_of(some, epoch) for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] == epoch_of(loader(), 0)
    assert epochs[1] == epoch_of(loader(), 1)
    assert epochs[0] != epochs[1] != epoch_of(loader(seed=1), 1)
    assert {epoch for batch in epochs[1] for epoch, _ in batch} == {1}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [0, 1, 4, 5])
def test_a_resumed_loader_goes_on_with_the_next_batch(workers, consumed):
    expected = epoch_of(loader(), 3)
    some = loader(workers=workers)
    some.set_epoch(3)
    assert list(itertools.islice(some, consumed)) == expected[:consumed]
    state = some.state_dict()
    assert state == {"epoch": 3, "batch": consumed}  # and not what workers have fetched ahead

    other = loader(workers=workers)
    other.load_state_dict(state)
    assert list(other) == (expected[consumed:] or expected)
    assert epoch_of(other, 4) == epoch_of(loader(), 4)


def test_the_epoch_may_be_set_after_the_iterator_was_made():
    some = loader()
    iterator = iter(some)
    some.set_epoch(2)
    assert list(iterator) == epoch_of(loader(), 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_draws_nothing_from_the_global_generators(workers):
    before = torch.get_rng_state()
    epoch_of(loader(workers=workers), 0)
    assert torch.equal(torch.get_rng_state(), before)


class BrokenError(ValueError):
    """Its last row cannot be read."""


class Broken(Rows):
    def __getitem__(self, index):
        if index == 22:
            raise BrokenError("row 22: not an image; mend it")
        return index


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_s_error_is_the_same_from_a_worker(workers):
    sampler = ShuffledBatchSampler(23, batch_size=1)
    with pytest.raises(BrokenError, match=r"^row 22: not an image; mend it$"):
        list(ResumableLoader(Broken(), batch_sampler=sampler, num_workers=workers))
    with pytest.raises(BrokenError, match=r"^row 22: not an image; mend it$"), original_errors():
        list(DataLoader(Broken(), num_workers=workers))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\nlines: here"), "two\nlines: here"),
        (FileNotFoundError(2, "gone", "a.png"), "[Errno 2] gone: 'a.png'"),
    ],
)
def test_errors_of_python_s_own_kinds_too(error, line):
    class Failing(Rows):
        def __getitem__(self, index):
            raise error

    with pytest.raises(type(error)) as raised, original_errors():
        list(DataLoader(Failing(), num_workers=1))
    assert str(raised.value) == line


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_an_epoch_without_overlap_in_equally_many_batches(world, drop_last):
    samplers = [
        ShuffledBatchSampler(23, batch_size=4, drop_last=drop_last, rank=rank, world=world) for rank in range(world)
    ]
    ranks = [list(sampler) for sampler in samplers]
    rows = [row for batches in ranks for batch in batches for row in batch]
    assert len(rows) == len(set(rows)) == (23 // world // 4 * 4 if drop_last else 23 // world) * world
    assert {len(batches) for batches in ranks} == {len(samplers[0])}


def test_a_batch_larger_than_the_data_is_an_error():
    with pytest.raises(ValueError, match=r"3 rows do not fill a batch of 4 on 1 device\(s\): lower the batch size"):
        ShuffledBatchSampler(3, batch_size=4)


@given(
    st.integers(3, 60).flatmap(lambda n: st.lists(st.integers(0, n // 2), min_size=n, max_size=n)),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_rows_of_one_group_are_neighbours_in_the_order_of_all_ranks(groups, world, epoch):
    numbers = torch.tensor(groups)
    samplers = [
        ShuffledBatchSampler(len(groups), batch_size=1, seed=3, rank=rank, world=world, groups=numbers)
        for rank in range(world)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    order = [row for step in zip(*samplers, strict=True) for batch in step for row in batch]
    assert len(order) == len(set(order)) == len(groups) // world * world
    runs = [group for group, _ in itertools.groupby(groups[row] for row in order)]
    assert len(runs) == len(set(runs))


def test_groups_are_shuffled_and_so_are_their_members():
    groups = torch.arange(20) // 2
    sampler = ShuffledBatchSampler(20, batch_size=20, groups=groups)
    orders = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        orders.append(next(iter(sampler)))
    assert len({tuple(order) for order in orders}) == 4
    firsts = {row % 2 for order in orders for row in order[::2]}
    assert firsts == {0, 1}
