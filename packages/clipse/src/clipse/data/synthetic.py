"""Write image-caption sets of the procedural world."""

from pathlib import Path
from typing import Literal

from clip_common.reporting import Progress
from clip_common.synthetic import write_flickr8k, write_parts, write_people


def write_synthetic(
    folder: Path,
    *,
    what: Literal["scenes", "parts", "people"],
    train: int,
    val: int,
    test: int,
    size: int,
    seed: int,
    progress: Progress | None = None,
) -> int:
    """Draw a set as a Flickr8k folder with five captions per image, and return the number of images.

    Args:
        folder: A folder that does not exist yet.
        what: `scenes` of one to four things, or `parts`: pairs of close-ups with and without a defect, or
            `people` who walk.
        train, val, test: Number of images of each split; even for `parts`.
        size: Pixels per side.
        seed: Seed of everything drawn.
        progress: Called while images are drawn.

    Raises:
        ValueError: An odd number of parts, or a folder that exists.
    """
    counts = {"train": train, "val": val, "test": test}
    if what == "scenes":
        write_flickr8k(folder, **counts, size=size, seed=seed, progress=progress)
    elif what == "people":
        write_people(folder, **counts, size=size, seed=seed, progress=progress)
    elif any(count % 2 for count in counts.values()):
        raise ValueError(f"parts come in pairs: give even numbers, got --train {train} --val {val} --test {test}")
    else:
        pairs = {split: count // 2 for split, count in counts.items()}
        write_parts(folder, **pairs, size=size, seed=seed, progress=progress)
    return sum(counts.values())
