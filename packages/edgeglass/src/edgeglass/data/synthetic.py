"""Write sets of the procedural world with images, captions and sounds."""

from pathlib import Path

from clip_common.reporting import Progress
from clip_common.synthetic import write_sounds


def write_synthetic(
    folder: Path,
    *,
    train: int,
    val: int,
    test: int,
    size: int,
    seed: int,
    progress: Progress | None = None,
) -> int:
    """Draw scenes as a JSONL folder, with five captions and one sound each, and return their number.

    Args:
        folder: A folder that does not exist yet.
        train, val, test: Number of scenes of each split.
        size: Pixels per side.
        seed: Seed of everything drawn.
        progress: Called while scenes are drawn.

    Raises:
        ValueError: A folder that exists, or a negative number.
    """
    write_sounds(folder, train=train, val=val, test=test, size=size, seed=seed, progress=progress)
    return train + val + test
