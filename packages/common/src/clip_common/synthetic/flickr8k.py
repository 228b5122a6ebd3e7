"""Scenes as a Flickr8k folder, the way Kaggle ships it, so that loaders for real data read it."""

import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from clip_common.synthetic.captions import captions
from clip_common.synthetic.draw import render
from clip_common.synthetic.oracle import attribute_oracle
from clip_common.synthetic.scenes import VERSION, Scene, sample_scene

SCENES = "scenes.jsonl"
_LISTS = {"train": "train", "val": "dev", "test": "test"}
_README = """Scenes of the procedural world of clip_common, version {version}, seed {seed}: {count} drawn pictures of
{size} x {size} pixels with {captions} captions each, in the layout of Flickr8k. scenes.jsonl holds what is in each.
"""


def write_flickr8k(
    folder: str | Path,
    *,
    train: int,
    val: int,
    test: int,
    seed: int = 0,
    size: int = 64,
    captions_per_image: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw scenes and write Images/, captions.txt, the split lists and scenes.jsonl; whole or not at all.

    Args:
        folder: A folder that does not exist yet.
        train, val, test: Images of each split; different scenes throughout.
        seed: Another seed is another set.
        size: Pixels a side.
        captions_per_image: Different captions of each image.
        progress: Called as `progress(done, total)`.

    Raises:
        ValueError: The folder exists, or a number that makes no set.
        OSError: The disk is full.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists: name a folder that does not, or remove it")
    if min(train, val, test) < 0 or train + val + test < 1:
        raise ValueError(f"nothing to draw: train={train}, val={val}, test={test}")
    splits = [split for split, count in (("train", train), ("val", val), ("test", test)) for _ in range(count)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        (draft / "Images").mkdir()
        rows = []
        for index, split in enumerate(splits):
            scene = sample_scene(seed, index)
            name = f"scene_{seed}_{index:06d}.jpg"
            render(scene, size=size).save(draft / "Images" / name, quality=92, subsampling=0)
            rows.append((name, split, scene))
            if progress is not None:
                progress(index + 1, len(splits))
        with (draft / "captions.txt").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["image", "caption"])
            writer.writerows((name, text) for name, _, scene in rows for text in captions(scene, captions_per_image))
        for split, word in _LISTS.items():
            names = "".join(f"{name}\n" for name, owner, _ in rows if owner == split)
            (draft / f"Flickr_8k.{word}Images.txt").write_text(names, encoding="utf-8")
        lines = "".join(json.dumps({"image": name} | scene.to_dict()) + "\n" for name, _, scene in rows)
        (draft / SCENES).write_text(lines, encoding="utf-8")
        about = _README.format(version=VERSION, seed=seed, count=len(rows), size=size, captions=captions_per_image)
        (draft / "README.txt").write_text(about, encoding="utf-8")
        draft.chmod(0o755)
        draft.rename(folder)
    except OSError as error:
        error.filename = error.filename or str(folder.parent)  # a full disk does not say which it is
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def oracle_of_folder(folder: str | Path, images: Sequence[str], texts: Sequence[Sequence[str]]) -> dict[str, float]:
    """The attribute oracle's metrics for some images of a folder that `write_flickr8k` wrote.

    Args:
        folder: The folder.
        images: File names of N images in it.
        texts: Their captions.
    """
    scenes = {}
    for line in (Path(folder) / SCENES).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        scenes[row["image"]] = Scene.from_dict(row)
    return attribute_oracle([scenes[name] for name in images], texts)
