"""Scenes, parts and people as a Flickr8k folder in Kaggle's layout, which loaders for real data read."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

import numpy as np

from clip_common.errors import check_list
from clip_common.reporting import Progress
from clip_common.runs.files import write_new_folder, write_text
from clip_common.synthetic.captions import captions, choose, naming_caption
from clip_common.synthetic.draw import render
from clip_common.synthetic.folders import check_counts, picture_name, save_jpeg, split_names, track
from clip_common.synthetic.oracle import attribute_oracle
from clip_common.synthetic.part_captions import part_captions
from clip_common.synthetic.part_draw import render_part
from clip_common.synthetic.parts import Part, novelty, sample_part
from clip_common.synthetic.people import Person, person_captions, render_person, sample_person
from clip_common.synthetic.scenes import KINDS, PRETRAINING_SEED, VERSION, Scene, generator, sample_scene
from clip_common.tables import csv_text, json_lines_text, read_json_lines

Content = TypeVar("Content", Scene, Part)

CONTENTS: dict[str, type[Scene] | type[Part] | type[Person]] = {
    "scenes.jsonl": Scene,
    "parts.jsonl": Part,
    "people.jsonl": Person,
}
"""File that describes the content of each picture → what it describes."""
TOGETHER = "together.csv"

_LISTS = {"train": "train", "val": "dev", "test": "test"}
_README = """{what} of the procedural world of clip_common, version {version}, seed {seed}: {count} drawn pictures of
{size} x {size} pixels with five captions each, in the layout of Flickr8k. scenes.jsonl, parts.jsonl and people.jsonl
describe the content of each picture; together.csv (image,group) groups the pictures that differ in one thing.
"""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a set: file name, split, content, captions, and the group of similar pictures, "" for none."""

    name: str
    split: str
    content: Scene | Part | Person
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
        train, val, test: Number of images of each split; no scene occurs twice.
        seed: Each seed gives another set; the tiny CLIP was trained on seed 0.
        size: Side of the pictures in pixels.
        workers: Number of processes that draw; the files do not depend on it.
        progress: Called as `progress(done, total)`, in pictures.

    Raises:
        ValueError: The folder exists, a count is negative or all are zero, or `size` is too small.
        OSError: The disk is full.
    """
    splits = split_names(train=train, val=val, test=test)
    pictures = [_scene_picture(sample_scene(seed, index), split) for index, split in enumerate(splits)]
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
    """Draw close-up parts whose damage the tiny CLIP has not seen (`parts.novelty`); write them as a Flickr8k folder.

    Each part is drawn twice, with its defect and without, both in one group of together.csv.

    Args:
        folder, seed, size, workers, progress: As for `write_flickr8k`.
        train, val, test: Number of parts of each split, two images each; no part occurs twice.

    Raises:
        ValueError, OSError: As for `write_flickr8k`.
    """
    splits = split_names(train=train, val=val, test=test)
    sampled = (sample_part(seed, index) for index in count())
    new = (part for part in sampled if novelty(part.kind, str(part.defect)) != "known")
    pictures = [picture for split, part in zip(splits, new, strict=False) for picture in _part_pictures(part, split)]
    return _write(Path(folder), pictures, what="Parts", seed=seed, size=size, workers=workers, progress=progress)


def write_people(
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
    """Draw walking people, of whom the tiny CLIP knows neither looks nor words; write them as a Flickr8k folder.

    Args:
        folder, seed, size, workers, progress: As for `write_flickr8k`.
        train, val, test: Number of images of each split; no person occurs twice.

    Raises:
        ValueError, OSError: As for `write_flickr8k`.
    """
    splits = split_names(train=train, val=val, test=test)
    people = [sample_person(seed, index) for index in range(len(splits))]
    pictures = [
        Picture(f"{picture_name(person)}.jpg", split, person, person_captions(person))
        for person, split in zip(people, splits, strict=True)
    ]
    return _write(Path(folder), pictures, what="People", seed=seed, size=size, workers=workers, progress=progress)


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
    """Draw the training set of the tiny CLIP: scenes and parts, each grouped with pictures that differ in one word.

    A scene is grouped with the same scene in which one thing is of another kind; a part with the same part with its
    defect, unless that is held out (`parts.novelty`), and with a flawless part of another kind. together.csv lists the
    groups: a batch that holds a group cannot be solved by colours and places alone. The last of a scene's five captions
    names its things and nothing else, so that the model learns the names by themselves.

    Args:
        folder, seed, size, workers, progress: As for `write_flickr8k`.
        scenes, parts: Number of training scenes and parts, two and about three images each.
        val_scenes, val_parts: Number of further scenes and parts for model selection.

    Raises:
        ValueError, OSError: As for `write_flickr8k`.
    """
    check_counts(scenes=scenes, parts=parts, val_scenes=val_scenes, val_parts=val_parts)
    pictures = []
    for index in range(scenes + val_scenes):
        split, scene = "train" if index < scenes else "val", sample_scene(seed, index)
        group = picture_name(scene)
        for version, name in ((scene, group), (_replace_kind(scene), f"{group}_other")):
            texts = [*captions(version, 4), naming_caption(version)]
            pictures.append(Picture(f"{name}.jpg", split, version, texts, group=group))
    for index in range(parts + val_parts):
        split, part = "train" if index < parts else "val", sample_part(seed, index)
        damaged, flawless = _part_pictures(part, split)
        pictures += [damaged, flawless] if novelty(part.kind, str(part.defect)) == "known" else [flawless]
        other, group = _replace_kind(part.flawless()), picture_name(part)
        pictures.append(Picture(f"{group}_other.jpg", split, other, part_captions(other), group=group))
    what = "Scenes and parts"
    return _write(Path(folder), pictures, what=what, seed=seed, size=size, workers=workers, progress=progress)


def oracle_of_folder(folder: str | Path, images: Sequence[str], texts: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the metrics of `attribute_oracle` for some images of a folder, or {} if the oracle cannot read them.

    It cannot read folders from outside the procedural world, scenes mixed with parts, or rewritten captions.

    Args:
        folder: Any folder.
        images: File names of N images in it.
        texts: Their captions.
    """
    check_list(images, "images", empty=False)
    check_list(texts, "texts", empty=False)
    for own in texts:
        check_list(own, "texts of an image", empty=False)
    for file, content in CONTENTS.items():
        if not (Path(folder) / file).exists():
            continue
        try:
            known = {row["image"]: content.from_dict(row) for _, row in read_json_lines(Path(folder) / file)}
            if known.keys() >= set(images):
                return attribute_oracle([known[name] for name in images], texts)
        except (ValueError, KeyError, TypeError):  # an unrelated file of that name, or captions of another grammar
            continue
    return {}


def _scene_picture(scene: Scene, split: str) -> Picture:
    return Picture(f"{picture_name(scene)}.jpg", split, scene, captions(scene))


def _part_pictures(part: Part, split: str) -> tuple[Picture, Picture]:
    """Return the pictures of a part with its defect, and without."""
    name, flawless = picture_name(part), part.flawless()
    return (
        Picture(f"{name}_damaged.jpg", split, part, part_captions(part), group=name),
        Picture(f"{name}.jpg", split, flawless, part_captions(flawless), group=name),
    )


def _replace_kind(content: Content) -> Content:
    """Return the same content with another kind for one of its things."""
    random = generator("another kind", seed=content.seed, index=content.index)
    if isinstance(content, Part):
        return replace(content, kind=_choose_other(content.kind, random))
    things = list(content.things)
    number = random.integers(len(things))
    things[number] = replace(things[number], kind=_choose_other(things[number].kind, random))
    return replace(content, things=tuple(things))


def _choose_other(kind: str, random: np.random.Generator) -> str:
    return choose([other for other in KINDS if other != kind], random)


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
        drawing = _draw_all(pictures, draft / "Images", size=size, workers=workers)
        list(track(drawing, total=len(pictures), progress=progress))
        captioned = ((p.name, text) for p in pictures for text in p.captions)
        write_text(draft / "captions.txt", csv_text(("image", "caption"), captioned))
        for split, word in _LISTS.items():
            names = "".join(f"{picture.name}\n" for picture in pictures if picture.split == split)
            (draft / f"Flickr_8k.{word}Images.txt").write_text(names, encoding="utf-8")
        for file, content in CONTENTS.items():
            chosen = [p for p in pictures if isinstance(p.content, content)]
            if chosen:
                write_text(draft / file, json_lines_text({"image": p.name} | p.content.to_dict() for p in chosen))
        if any(picture.group for picture in pictures):
            grouped = ((p.name, p.group) for p in pictures if p.group)
            write_text(draft / TOGETHER, csv_text(("image", "group"), grouped))
        about = _README.format(what=what, version=VERSION, seed=seed, count=len(pictures), size=size)
        (draft / "README.txt").write_text(about, encoding="utf-8")
    return folder


def _draw_all(pictures: Sequence[Picture], folder: Path, *, size: int, workers: int) -> Iterator[None]:
    """Draw and save each picture, in this process or in `workers` others; yield after each."""
    save = partial(_save, folder=folder, size=size)
    if workers == 1:
        yield from map(save, pictures)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(save, pictures, chunksize=64)


def _save(picture: Picture, *, folder: Path, size: int) -> None:
    content = picture.content
    if isinstance(content, Scene):
        image = render(content, size=size)
    elif isinstance(content, Part):
        image = render_part(content, size=size)[0]
    else:
        image = render_person(content, size=size)
    save_jpeg(image, folder / picture.name)
