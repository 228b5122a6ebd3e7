"""Batches with at most one clip per subject, so that no negative comes from the same person.

N clips of S subjects, M batches of G clips on all ranks together.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from clip_common.errors import DataError
from clip_common.loader import ShuffledBatchSampler
from videoclip.data.records import ClipRecord


class SubjectUniqueBatchSampler(ShuffledBatchSampler):
    """Full batches with at most one clip per subject over all ranks; the order is a function of (seed, epoch).

    An epoch has as many such batches as possible and uses every clip at most once. Surplus clips, such as those of a
    subject with more clips than batches, are skipped; each epoch draws anew which. Ranks are disjoint and have the same
    number of batches.

    An epoch is built as follows. M is the largest number with Σ min(clips of a subject, M) ≥ G·M. Each batch takes the
    subjects that must be in every remaining batch, then draws others, weighted by their remaining clips. So enough
    subjects remain for the next batch, and the subjects that meet in a batch vary.

    Args:
        subject_N: Subject number of each row of the dataset, from 0.
        batch_size: Clips of a batch on one rank.
        seed: Determines the order, together with the epoch and the subjects.
        rank: Number of this process.
        world: Number of processes.

    Raises:
        DataError: Fewer subjects than clips in a batch.
    """

    def __init__(self, subject_N: Tensor, *, batch_size: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        clips_S = subject_N.unique(return_counts=True)[1]
        size = batch_size * world
        if len(clips_S) < size:
            most = len(clips_S) // world * world
            remedy = f"set data.batch_size to at most {most}" if most else f"use at most {len(clips_S)} device(s)"
            raise DataError(
                f"data.batches=subject_unique: {len(clips_S)} training subjects do not fill a batch of {size} clips of "
                f"different subjects: {remedy}, or set data.batches=shuffled"
            )
        batches = 1
        while int(clips_S.clamp(max=batches + 1).sum()) >= size * (batches + 1):
            batches += 1
        super().__init__(batches * size, batch_size=batch_size, seed=seed, rank=rank, world=world)
        self.subject_N = subject_N

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the rows of an epoch, as consecutive batches of all ranks together."""
        mixed_N = torch.randperm(len(self.subject_N), generator=generator)
        _, subject_N = self.subject_N[mixed_N].unique(return_inverse=True)
        rows = [rows.tolist() for rows in mixed_N[subject_N.argsort(stable=True)].split(subject_N.bincount().tolist())]
        size, batches = self.batch_size * self.world, len(self)
        # at most one clip per subject and batch; a random choice of the surplus is dropped
        places = torch.repeat_interleave(subject_N.bincount().clamp(max=batches))
        kept = places[torch.randperm(len(places), generator=generator)[: size * batches]]
        left_S = kept.bincount(minlength=len(rows))
        order: list[int] = []
        for remaining in range(batches, 0, -1):
            # the largest of random ** (1 / left): a draw without replacement, in proportion to the remaining clips
            key_S = torch.rand(len(rows), generator=generator, dtype=torch.float64) ** (1 / left_S)
            key_S[left_S == 0] = -1
            key_S[left_S == remaining] = 2
            chosen = key_S.topk(size).indices
            left_S[chosen] -= 1
            order += [rows[subject].pop() for subject in chosen.tolist()]
        return torch.tensor(order)


def number_subjects(records: Iterable[ClipRecord]) -> Tensor:
    """Return the subject number of each clip, (N,) long, from 0 in order of first appearance."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(record.subject_id, len(numbers)) for record in records])
