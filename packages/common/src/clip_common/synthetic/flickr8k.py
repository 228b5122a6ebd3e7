"""Scenes and parts as a Flickr8k folder, the way Kaggle ships it, so that loaders for real data read it."""

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

import numpy as np

from clip_common.reporting import Progress
from clip_common.runs.files import write_new_folder, write_text
from clip_common.synthetic.captions import captions, naming_caption
from clip_common.synthetic.draw import render
from clip_common.synthetic.folders import check_counts
from clip_common.synthetic.oracle import attribute_oracle
from clip_common.synthetic.part_captions import part_captions
from clip_common.synthetic.part_draw import render_part
from clip_common.synthetic.parts import Part, novelty, sample_part
from clip_common.synthetic.scenes import KINDS, PRETRAINING_SEED, VERSION, Scene, generator, sample_scene
from clip_common.tables import csv_text, json_lines_text, read_json_lines

Content = TypeVar("Content", Scene, Part)

SCENES, PARTS, TOGETHER = "scenes.jsonl", "parts.jsonl", "together.csv"

_LISTS = {"train": "train", "val": "dev", "test": "test"}
_README = """{what} of the procedural world of clip_common, version {version}, seed {seed}: {count} drawn pictures of
{size} x {size} pixels with five captions each, in the layout of Flickr8k. scenes.jsonl and parts.jsonl hold what is in
each; together.csv (image,group) names the pictures that differ in one thing.
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a set: its file, its split, what is in it, and the group of pictures it belongs with, if any."""

    name: str
    split: str
    content: Scene | Part
    captions: list[str]
    group: str = ""


def write_flickr8k(
    folder: str | Path,
    *,
    train: int,
    val: int,
    test: int,
    seed: int = 1,
    size: int = 64,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Draw scenes and write Images/, captions.txt, the split lists and scenes.jsonl; whole or not at all.

    Args:
        folder: A folder that does not exist yet.
        train, val, test: Images of each split; different scenes throughout.
        seed: Another seed is another set; 0 is what the tiny CLIP learned from.
        size: Pixels a side.
        workers: Processes that draw; the files are the same.
        progress: Called as `progress(done, total)`.

    Raises:
        ValueError: The folder exists, or a number that makes no set.
        OSError: The disk is full.
    """
    check_counts(train=train, val=val, test=test)
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    pictures = [_scene(seed, index, split) for index, split in enumerate(splits)]
    return _write(Path(folder), pictures, what="Scenes", seed=seed, size=size, workers=workers, progress=progress)


def write_parts(
    folder: str | Path,
    *,
    train: int,
    val: int,
    test: int,
    seed: int = 1,
    size: int = 112,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Draw close-up parts whose damage the tiny CLIP has not seen (`parts.novelty`), as `write_flickr8k` does.

    Each part twice, with its defect and without, both in one group of together.csv.

    Args:
        folder: A folder that does not exist yet.
        train, val, test: Parts of each split, two images each; different parts throughout.

    Raises:
        ValueError: The folder exists, or a number that makes no set.
        OSError: The disk is full.
    """
    check_counts(train=train, val=val, test=test)
    drawn = (sample_part(seed, index) for index in count())
    new = (part for part in drawn if novelty(part.kind, str(part.defect)) != "known")
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    pictures = [picture for split, part in zip(splits, new, strict=False) for picture in _pair(part, split)]
    return _write(Path(folder), pictures, what="Parts", seed=seed, size=size, workers=workers, progress=progress)


def write_pretraining(
    folder: str | Path,
    *,
    scenes: int,
    parts: int,
    val_scenes: int,
    val_parts: int,
    seed: int = PRETRAINING_SEED,
    size: int = 112,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Draw what the tiny CLIP learns from: scenes and parts, with pictures beside each that differ in one word.

    Beside a scene the same scene in which one thing is of another kind; beside a part the same part with its defect,
    where that is not held out (`parts.novelty`), and a flawless part of another kind. All of a group are named in
    together.csv: a batch that holds them is not told apart by colours and places alone. The last of a scene's five
    captions names its things and no more, so that a name alone means something.

    Args:
        scenes, parts: Scenes and parts to train on, two and about three images each.
        val_scenes, val_parts: Others to select on.

    Raises:
        ValueError: The folder exists, or a number that makes no set.
        OSError: The disk is full.
    """
    check_counts(scenes=scenes, parts=parts, val_scenes=val_scenes, val_parts=val_parts)
    pictures = []
    for index in range(scenes + val_scenes):
        split, scene = "train" if index < scenes else "val", sample_scene(seed, index)
        for one, name in ((scene, _name(scene)), (_with_another_kind(scene), f"{_name(scene)}_other")):
            told = [*captions(one, 4), naming_caption(one)]
            pictures.append(Picture(f"{name}.jpg", split, one, told, group=_name(scene)))
    for index in range(parts + val_parts):
        split, part = "train" if index < parts else "val", sample_part(seed, index)
        damaged, flawless = _pair(part, split)
        other = _with_another_kind(part.flawless())
        pictures += [damaged, flawless] if novelty(part.kind, str(part.defect)) == "known" else [flawless]
        told = part_captions(other)
        pictures.append(Picture(f"{_name(part)}_other.jpg", split, other, told, group=_name(part)))
    what = "Scenes and parts"
    return _write(Path(folder), pictures, what=what, seed=seed, size=size, workers=workers, progress=progress)


def oracle_of_folder(folder: str | Path, images: Sequence[str], texts: Sequence[Sequence[str]]) -> dict[str, float]:
    """The attribute oracle's metrics for some images of a folder, as far as it can read them.

    It has nothing to say of a folder that is not of the procedural world, of scenes mixed with parts, and of captions
    that somebody has rewritten.

    Args:
        folder: Any folder.
        images: File names of N images in it.
        texts: Their captions.
    """
    for file, content in ((SCENES, Scene), (PARTS, Part)):
        if not (Path(folder) / file).exists():
            continue
        try:
            told = {row["image"]: content.from_dict(row) for _, row in read_json_lines(Path(folder) / file)}
            if told.keys() >= set(images):
                return attribute_oracle([told[name] for name in images], texts)
        except (ValueError, KeyError, TypeError):  # somebody else's file of that name, or words of another grammar
            continue
    return {}


def _scene(seed: int, index: int, split: str) -> Picture:
    scene = sample_scene(seed, index)
    return Picture(f"{_name(scene)}.jpg", split, scene, captions(scene))


def _pair(part: Part, split: str) -> tuple[Picture, Picture]:
    """The part with its defect, and without."""
    name, flawless = _name(part), part.flawless()
    return (
        Picture(f"{name}_damaged.jpg", split, part, part_captions(part), group=name),
        Picture(f"{name}.jpg", split, flawless, part_captions(flawless), group=name),
    )


def _name(content: Scene | Part) -> str:
    return f"{type(content).__name__.lower()}_{content.seed}_{content.index:06d}"


def _with_another_kind(content: Content) -> Content:
    """The same picture, but for one thing in it that is of another kind."""
    random = generator("another kind", seed=content.seed, index=content.index)
    if isinstance(content, Part):
        return replace(content, kind=_other(content.kind, random))
    things = list(content.things)
    number = random.integers(len(things))
    things[number] = replace(things[number], kind=_other(things[number].kind, random))
    return replace(content, things=tuple(things))


def _other(kind: str, random: np.random.Generator) -> str:
    others = [other for other in KINDS if other != kind]
    return others[random.integers(len(others))]


def _write(
    folder: Path,
    pictures: Sequence[Picture],
    *,
    what: str,
    seed: int,
    size: int,
    workers: int,
    progress: Progress | None,
) -> Path:
    with write_new_folder(folder) as draft:
        (draft / "Images").mkdir()
        for done, _ in enumerate(_drawn(pictures, draft / "Images", size=size, workers=workers), start=1):
            if progress is not None:
                progress(done, len(pictures))
        captioned = ((p.name, text) for p in pictures for text in p.captions)
        write_text(draft / "captions.txt", csv_text(("image", "caption"), captioned))
        for split, word in _LISTS.items():
            names = "".join(f"{picture.name}\n" for picture in pictures if picture.split == split)
            (draft / f"Flickr_8k.{word}Images.txt").write_text(names, encoding="utf-8")
        for file, content in ((SCENES, Scene), (PARTS, Part)):
            told = [p for p in pictures if isinstance(p.content, content)]
            if told:
                write_text(draft / file, json_lines_text({"image": p.name} | p.content.to_dict() for p in told))
        if any(picture.group for picture in pictures):
            grouped = ((p.name, p.group) for p in pictures if p.group)
            write_text(draft / TOGETHER, csv_text(("image", "group"), grouped))
        about = _README.format(what=what, version=VERSION, seed=seed, count=len(pictures), size=size)
        (draft / "README.txt").write_text(about, encoding="utf-8")
    return folder


def _drawn(pictures: Sequence[Picture], folder: Path, *, size: int, workers: int) -> Iterable[None]:
    """Draw and save each picture, in this process or in others."""
    save = partial(_save, folder=folder, size=size)
    if workers == 1:
        yield from map(save, pictures)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(save, pictures, chunksize=64)


def _save(picture: Picture, *, folder: Path, size: int) -> None:
    content = picture.content
    image = render(content, size=size) if isinstance(content, Scene) else render_part(content, size=size)[0]
    image.save(folder / picture.name, quality=92, subsampling=0)
