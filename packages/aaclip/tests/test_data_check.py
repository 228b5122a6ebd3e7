"""Every problem of a set is one line; every file is read once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aaclip.data import Count, Dataset, Record, check, read_dataset


def put(file: Path, *, value: int = 0, size: tuple[int, int] = (6, 4)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(file)
    return file


@pytest.fixture
def root(tmp_path) -> Path:
    for name in ("螺丝/train/good/0.png", "螺丝/train/good/1.png", "螺丝/test/good/2.png", "nut/train/good/0.png"):
        put(tmp_path / name)
    for defect in ("a, b", "c"):
        for number in range(2):
            put(tmp_path / "螺丝/test" / defect / f"{number}.png")
            put(tmp_path / "螺丝/ground_truth" / defect / f"{number}_mask.png", value=1)
    return tmp_path


def test_a_sound_set_is_counted(root):
    done = []
    report = check(read_dataset(root), progress=lambda *at: done.append(at))
    assert report.ok
    assert (report.root, report.format, report.problems) == (root, "mvtec", [])
    assert report.counts == [
        Count("nut", "train", normal=1),
        Count("螺丝", "test", normal=1, anomalous=4, masked=4),
        Count("螺丝", "train", normal=2),
    ]
    assert done == [(number, 8) for number in range(1, 9)]


def test_each_problem_is_one_line(root):
    masks = root / "螺丝" / "ground_truth"
    (root / "nut/train/good/0.png").write_bytes(b"no\npicture")
    put(masks / "a, b" / "0_mask.png", value=0)
    put(masks / "a, b" / "1_mask.png", value=1, size=(4, 6))
    (masks / "c" / "0_mask.png").unlink()
    whole = (masks / "c" / "1_mask.png").read_bytes()
    (masks / "c" / "1_mask.png").write_bytes(whole[: len(whole) // 2])
    report = check(read_dataset(root))
    assert not report.ok
    assert len(report.problems) == 5
    for line, (start, reason) in zip(
        sorted(report.problems),
        sorted(
            [
                (root / "nut/train/good/0.png", ": not a readable image"),
                (
                    masks / "a, b" / "0_mask.png",
                    f": marks nothing, though {root / '螺丝/test/a, b/0.png'} is anomalous",
                ),
                (masks / "a, b" / "1_mask.png", ": a mask of 4x6 pixels, but its image has 6x4"),
                (root / "螺丝/test/c/0.png", f": no mask; expected {masks / 'c' / '0_mask.png'}"),
                (masks / "c" / "1_mask.png", ": not a readable image"),
            ]
        ),
        strict=True,
    ):
        assert line.startswith(f"{start}{reason}")
        assert "\n" not in line
    assert Count("螺丝", "test", normal=1, anomalous=4, masked=3) in report.counts


def test_pictures_and_masks_that_a_list_names_wrongly(tmp_path):
    image, black, white = put(tmp_path / "0.png"), put(tmp_path / "black.png"), put(tmp_path / "white.png", value=255)
    records = [
        Record(image, "x", "test", anomalous=False, mask=black),  # says what is so
        Record(image, "x", "test", anomalous=False, mask=white),
        Record(tmp_path / "gone.png", "x", "test", anomalous=True, mask=white),
    ]
    report = check(Dataset(tmp_path, "jsonl", records))
    assert report.problems == [
        f"{white}: marks a defect, though {image} is normal",
        f"{tmp_path / 'gone.png'}: no such file",
    ]


def test_a_set_without_masks_has_no_problem_with_that(tmp_path):
    put(tmp_path / "good" / "0.png")
    put(tmp_path / "bad" / "0.png")
    report = check(read_dataset(tmp_path))
    assert report.ok
    assert report.counts == [Count(tmp_path.name, "test", normal=1, anomalous=1, masked=0)]


def test_every_file_is_read_once(root, monkeypatch):
    opened: Counter[Path] = Counter()
    whole = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *mode: opened.update([path]) or whole(path, *mode))
    dataset = read_dataset(root)
    assert not opened
    check(dataset)
    assert set(opened.values()) == {1}
    assert len(opened) == 12


def test_a_mask_that_its_turned_picture_fits_is_no_problem(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(tmp_path / "images" / "0.png", exif=exif)
    put(tmp_path / "masks" / "0.png", value=255, size=(4, 6))
    assert check(read_dataset(tmp_path)).ok
