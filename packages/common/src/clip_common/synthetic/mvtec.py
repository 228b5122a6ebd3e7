"""Parts as an MVTec tree, which loaders for real inspection data read."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from clip_common.errors import check_list
from clip_common.reporting import Progress
from clip_common.runs.files import write_new_folder, write_text
from clip_common.synthetic.folders import check_counts, track
from clip_common.synthetic.part_draw import render_part
from clip_common.synthetic.parts import DEFECTS, Part, sample_part
from clip_common.synthetic.scenes import KINDS, VERSION
from clip_common.tables import json_lines_text, read_json_lines

_MOST_PARTS = 100_000  # of one kind
_README = """Parts of the procedural world of clip_common, version {version}, seed {seed}, in the layout of MVTec AD:
KIND/train/good, KIND/test/good, KIND/test/DEFECT and KIND/ground_truth/DEFECT, {size} x {size} pixels each.
parts.jsonl describes the content of each picture.
"""


def write_mvtec(
    folder: str | Path,
    *,
    kinds: Sequence[str] = KINDS,
    defects: Sequence[str] = DEFECTS,
    train: int,
    good: int,
    damaged: int,
    seed: int = 1,
    size: int = 112,
    progress: Progress | None = None,
) -> Path:
    """Draw parts of some kinds, with masks of their defects, as KIND/train, test and ground_truth; whole or not at all.

    Args:
        folder: A folder that does not exist yet.
        kinds: Kinds to draw, a category each.
        defects: Defects to draw, a folder of test pictures each, such as `missing_part` for "missing part".
        train: Number of flawless training pictures for each kind.
        good: Number of flawless test pictures for each kind.
        damaged: Number of test pictures for each kind and defect.
        seed: Each seed gives another set.
        size: Side of the pictures in pixels.
        progress: Called as `progress(done, total)`, in pictures.

    Raises:
        ValueError: The folder exists, a count is negative, all are zero or too large, `size` is too small, or the world
            lacks a kind or defect.
        OSError: The disk is full.
    """
    check_list(kinds, "kinds", empty=False)
    check_list(defects, "defects", empty=False)
    check_counts(train=train, good=good, damaged=damaged)
    if train + good + damaged * len(DEFECTS) > _MOST_PARTS:
        raise ValueError(
            f"train={train}, good={good}, damaged={damaged} of {len(DEFECTS)} defects: a kind has at most "
            f"{_MOST_PARTS} parts, ask for fewer"
        )
    parts: list[tuple[str, Part]] = []
    for kind in kinds:
        first = KINDS.index(kind) * _MOST_PARTS if kind in KINDS else 0
        plan: list[tuple[str, str | None]] = [*[("train/good", None)] * train, *[("test/good", None)] * good]
        plan += [(f"test/{defect.replace(' ', '_')}", defect) for defect in defects for _ in range(damaged)]
        for offset, (place, defect) in enumerate(plan):
            part = sample_part(seed, first + offset, kinds=(kind,), defects=(defect,) if defect else DEFECTS)
            parts.append((f"{kind}/{place}/{offset:05d}.png", part if defect else part.flawless()))
    with write_new_folder(Path(folder)) as draft:
        for name, part in track(parts, total=len(parts), progress=progress):
            picture, mask = render_part(part, size=size)
            _save(picture, draft / name)
            if part.defect is not None:
                kind, _, defect, file = name.split("/")
                _save(mask, draft / kind / "ground_truth" / defect / file.replace(".png", "_mask.png"))
        write_text(draft / "parts.jsonl", json_lines_text({"image": name} | part.to_dict() for name, part in parts))
        (draft / "README.txt").write_text(_README.format(version=VERSION, seed=seed, size=size), encoding="utf-8")
    return Path(folder)


def read_parts(folder: str | Path) -> dict[str, Part]:
    """Return the part of each picture of a folder, by the image's name in its lists: input of the oracles."""
    return {row["image"]: Part.from_dict(row) for _, row in read_json_lines(Path(folder) / "parts.jsonl")}


def _save(picture: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)
