"""Choices that training makes for each sample, as functions of seed, epoch and index."""

import numpy as np

from edgeglass.data.records import Sample


def choose_caption(sample: Sample, *, seed: int, epoch: int, index: int) -> int | None:
    """Return which of its captions a sample shows in an epoch; None if it has none.

    It depends on the arguments only, so that a sample is the same in any worker, in any order and after a restart.

    Args:
        sample: The sample.
        seed: Root seed of the run.
        epoch: Number of the epoch, from 0.
        index: Row of the sample in its split.
    """
    if len(sample.captions) < 2:
        return 0 if sample.captions else None
    return int(np.random.default_rng((seed, epoch, index)).integers(len(sample.captions)))
