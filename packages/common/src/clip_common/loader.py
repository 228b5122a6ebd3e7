"""Loaders that resume at the next batch, in an order that depends on (seed, epoch) alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler


class ResumableBatchSampler(Protocol):
    """Batches of indices as a function of (seed, epoch)."""

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the first batch of `epoch`."""

    def __iter__(self) -> Iterator[list[int]]:
        """Yield batches, from the position that was set."""
        ...

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        ...

    def state_dict(self) -> dict[str, int]:
        """Return `{"epoch", "batch"}`."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration at batch `state["batch"]` of epoch `state["epoch"]`."""


class ShuffledBatchSampler(Sampler[list[int]]):
    """Shuffled batches of `n` rows, disjoint across ranks; the order is a function of (seed, epoch).

    Every rank yields the same number of batches: rows that do not divide among the ranks are dropped for the epoch.

    Args:
        n: Rows of the dataset.
        batch_size: Rows of a batch on one rank.
        seed: Determines the order, together with the epoch.
        drop_last: Drop a last batch that is not full.
        rank: Index of this process.
        world: Number of processes.
        groups: (n,) group of each row. Rows of one group are adjacent in the order, so that they share a global batch
            unless a batch ends between them.

    Raises:
        ValueError: There are too few rows for one batch.
    """

    def __init__(
        self,
        n: int,
        *,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = True,
        rank: int = 0,
        world: int = 1,
        groups: Tensor | None = None,
    ) -> None:
        self.rows = n // world // batch_size * batch_size if drop_last else n // world
        if self.rows == 0:
            raise ValueError(f"{n} rows do not fill a batch of {batch_size} on {world} device(s): lower the batch size")
        self.n, self.batch_size, self.seed, self.rank, self.world = n, batch_size, seed, rank, world
        self.groups = groups
        self.epoch, self.batch = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the first batch of `epoch`."""
        self.epoch, self.batch = epoch, 0

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        mine = self.order(generator)[self.rank :: self.world][: self.rows].tolist()
        while self.batch < len(self):
            self.batch += 1
            yield mine[(self.batch - 1) * self.batch_size : self.batch * self.batch_size]
        self.batch = 0

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the row order of an epoch as consecutive global batches; surplus rows at the end are dropped."""
        order = torch.randperm(self.n, generator=generator)
        if self.groups is not None:
            place = torch.randperm(int(self.groups.max()) + 1, generator=generator)
            order = order[place[self.groups[order]].argsort(stable=True)]
        return order

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def state_dict(self) -> dict[str, int]:
        """Return `{"epoch", "batch"}`: `batch` batches of the epoch have been yielded."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration at batch `state["batch"]` of epoch `state["epoch"]`."""
        self.epoch, self.batch = state["epoch"], state["batch"]


class ResumableLoader(DataLoader[Any]):
    """A DataLoader with `state_dict` and `load_state_dict` over a batch sampler that is a function of (seed, epoch).

    Batches count as consumed when the trainer receives them, not when workers prefetch them. If the dataset has
    `set_epoch(epoch)`, it is called in the worker before the items of an epoch. Iterating draws nothing from the global
    random generators. A sample's ValueError is the same with and without workers (`original_errors`).

    Args:
        dataset: Index → sample, as a function of (seed, epoch, index).
        batch_sampler: See `ResumableBatchSampler`.
        collate_fn: Samples → batch.
        num_workers: Worker processes, kept between epochs; 0 loads in the training process. Batches are the same.
        pin_memory: Page-locked batches, for transfer to a GPU.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        batch_sampler: ResumableBatchSampler,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            _AtEpoch(dataset),
            batch_sampler=_WithEpoch(batch_sampler),
            collate_fn=collate_fn,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # seeds the workers; without it each iteration draws from the global generator
        )
        self._sampler = batch_sampler
        self._state = {"epoch": 0, "batch": 0}

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the first batch of `epoch`."""
        self._state = {"epoch": epoch, "batch": 0}

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # runs only at the first batch: Lightning makes the iterator before it knows the epoch
        state = self._state = dict(self._state)
        if state["batch"] >= len(self):  # the epoch is consumed; without set_epoch, repeat it
            state["batch"] = 0
        self._sampler.load_state_dict(state)
        with original_errors():
            for batch in super().__iter__():
                state["batch"] += 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return `{"epoch", "batch"}`: `batch` batches of the epoch have been consumed."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iteration at batch `state["batch"]` of epoch `state["epoch"]`."""
        self._state = {"epoch": int(state["epoch"]), "batch": int(state["batch"])}


class _WithEpoch(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index): persistent workers learn the epoch from the items that they load."""

    def __init__(self, batches: ResumableBatchSampler) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.batches.state_dict()["epoch"]
        for batch in self.batches:
            yield [(epoch, index) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)


class _AtEpoch(Dataset[Any]):
    """A dataset indexed by (epoch, index)."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self.epoch = -1

    def __getitems__(self, keys: list[tuple[int, int]]) -> Any:
        epoch = keys[0][0]
        if epoch != self.epoch and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        self.epoch = epoch
        indices = [index for _, index in keys]
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(indices)
        return [self.dataset[index] for index in indices]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]


@contextmanager
def original_errors() -> Iterator[None]:
    """Raise a ValueError or OSError of a DataLoader's worker with its original message.

    torch puts the worker's whole traceback into the message; here the traceback stays with the cause (`__cause__`).
    A ResumableLoader and `fit` do this themselves.

    Example:
        with original_errors():
            for batch in DataLoader(dataset, num_workers=2):
                ...
    """
    try:
        yield
    except (ValueError, OSError) as error:
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        traceback, raised, message = str(error).rpartition(f"\n{name}: ")
        if not (raised and "\nOriginal Traceback" in traceback):
            raise
        raise kind(message.rstrip()) from error


def epoch_seed(seed: int, epoch: int) -> int:
    """Return a 63-bit seed for (seed, epoch)."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
