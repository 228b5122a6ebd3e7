"""Write sets of the procedural world: images with captions and sounds, or with questions."""

from pathlib import Path

from clip_common.reporting import Progress
from clip_common.synthetic import TYPES, write_questions, write_sounds
from clip_common.tables import read_json_lines


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


def write_synthetic_questions(
    folder: Path,
    *,
    train: int,
    val: int,
    test: int,
    size: int,
    seed: int,
    per_picture: int | None = None,
    captions_per_picture: int = 0,
    types: tuple[str, ...] = TYPES,
    progress: Progress | None = None,
) -> int:
    """Draw scenes and questions about them as a JSONL folder, and return the number of questions and captions.

    Args:
        folder: A folder that does not exist yet.
        train, val, test: Number of questions of each type in each split; with `per_picture`, `train` is the number of
            training pictures.
        size: Pixels per side.
        seed: Seed of everything drawn.
        per_picture: Number of training questions about each picture; None: a balanced set, like the other splits.
        captions_per_picture: Number of captions of each training picture, 0 to 10.
        types: Some of `clip_common.synthetic.TYPES` and `REASONING_TYPES`.
        progress: Called while scenes are drawn.

    Raises:
        ValueError: A folder that exists, a number that is negative or too small for a balanced set, an unknown type.
    """
    write_questions(
        folder, train=train, val=val, test=test, per_picture=per_picture, captions_per_picture=captions_per_picture,
        types=types, size=size, seed=seed, progress=progress,
    )  # fmt: skip
    return sum(1 for _ in read_json_lines(folder / "questions.jsonl"))
