"""Loaders that know where they are: the first batch after a resume is the one that would have come next."""

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
        """The next iteration is that of `epoch`, from its first batch."""

    def __iter__(self) -> Iterator[list[int]]:
        """The batches, from where the sampler was set."""
        ...

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        ...

    def state_dict(self) -> dict[str, int]:
        """`{"epoch", "batch"}`."""
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration goes on with batch `state["batch"]` of epoch `state["epoch"]`."""


class ShuffledBatchSampler(Sampler[list[int]]):
    """Plain shuffled batches of `n` rows, disjoint across ranks; the order is a function of (seed, epoch).

    Every rank gives the same number of batches: rows left over by dividing among ranks are left out of the epoch.

    Args:
        n: Rows of the dataset.
        batch_size: Rows of a batch on one rank.
        seed: With the epoch, the whole of the order.
        drop_last: Leave out a last batch that is not full.
        rank: This process.
        world: Number of processes.
        groups: (n,) numbers: rows of one group are neighbours in the order, so that they meet in a batch (of all ranks
            together) unless one ends between them.

    Raises:
        ValueError: Not one batch would come out.
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
        """The next iteration is that of `epoch`, from its first batch."""
        self.epoch, self.batch = epoch, 0

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        mine = self.order(generator)[self.rank :: self.world][: self.rows].tolist()
        while self.batch < len(self):
            self.batch += 1
            yield mine[(self.batch - 1) * self.batch_size : self.batch * self.batch_size]
        self.batch = 0

    def order(self, generator: torch.Generator) -> Tensor:
        """The rows of an epoch, batch of all ranks after batch; of what is too much, the end is left out."""
        order = torch.randperm(self.n, generator=generator)
        if self.groups is not None:
            place = torch.randperm(int(self.groups.max()) + 1, generator=generator)
            order = order[place[self.groups[order]].argsort(stable=True)]
        return order

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def state_dict(self) -> dict[str, int]:
        """`{"epoch", "batch"}`: `batch` batches of the epoch have been given out."""
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration goes on with batch `state["batch"]` of epoch `state["epoch"]`."""
        self.epoch, self.batch = state["epoch"], state["batch"]


class ResumableLoader(DataLoader[Any]):
    """A DataLoader with `state_dict` and `load_state_dict` over a batch sampler that is a function of (seed, epoch).

    Only batches that were handed to the trainer count as consumed, not those that workers fetched ahead. A dataset
    with `set_epoch(epoch)` is told the epoch of each item, in the worker that makes it. Iterating draws nothing from
    the global random generators. A sample's ValueError is the same from a worker as without one (`original_errors`).

    Args:
        dataset: Index → sample, as a function of (seed, epoch, index).
        batch_sampler: See `ResumableBatchSampler`.
        collate_fn: Samples → batch.
        num_workers: Worker processes, kept from epoch to epoch; 0 loads in the training process. Same batches.
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
            generator=torch.Generator(),  # seeds the workers; else each iteration would draw from the global one
        )
        self._sampler = batch_sampler
        self._state = {"epoch": 0, "batch": 0}

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is that of `epoch`, from its first batch."""
        self._state = {"epoch": epoch, "batch": 0}

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # a generator does nothing before its first batch: Lightning makes the iterator before the epoch is known
        state = self._state = dict(self._state)
        if state["batch"] >= len(self):  # the epoch was consumed; without set_epoch it comes again
            state["batch"] = 0
        self._sampler.load_state_dict(state)
        with original_errors():
            for batch in super().__iter__():
                state["batch"] += 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        """`{"epoch", "batch"}`: `batch` batches of the epoch have been consumed."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next iteration goes on with batch `state["batch"]` of epoch `state["epoch"]`."""
        self._state = {"epoch": int(state["epoch"]), "batch": int(state["batch"])}


class _WithEpoch(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index): workers that outlive an epoch learn the next one from the items they are asked for."""

    def __init__(self, batches: ResumableBatchSampler) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.batches.state_dict()["epoch"]
        for batch in self.batches:
            yield [(epoch, index) for index in batch]

    def __len__(self) -> int:
        return len(self.batches)


class _AtEpoch(Dataset[Any]):
    """A dataset asked by (epoch, index)."""

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
    """Let a ValueError or OSError of a DataLoader's worker leave the block as it was raised there.

    torch puts the worker's whole traceback into its message; here that stays with the error that this one comes from.
    A ResumableLoader and `fit` do this by themselves.

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
    """A seed of 63 bits for each (seed, epoch)."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0] >> np.uint64(1))
