"""Rules for every writer of the world: same seed, same files; a set is whole or absent; errors are one line."""

import functools

import pytest

from clip_common.synthetic import (
    write_flickr8k,
    write_mvtec,
    write_parts,
    write_pretraining,
    write_questions,
    write_sounds,
    write_walking,
)

SPLITS = {"train": 1, "val": 0, "test": 0}
WRITERS = {
    "flickr8k": functools.partial(write_flickr8k, **SPLITS, size=32),
    "parts": functools.partial(write_parts, **SPLITS, size=32),
    "pretraining": functools.partial(write_pretraining, scenes=1, parts=1, val_scenes=0, val_parts=0, size=32),
    "sounds": functools.partial(write_sounds, **SPLITS, size=32),
    "questions": functools.partial(write_questions, **SPLITS | {"train": 16}, size=32),
    "mvtec": functools.partial(write_mvtec, kinds=("mug",), train=1, good=0, damaged=1, size=32),
    "walking": functools.partial(write_walking, subjects=15, clips_per_subject=1, seconds=1 / 24, size=32),
}
SAVES = {"sounds": "pathlib.Path.write_bytes", "walking": "numpy.save"}
"""The function that saves the samples of a set; for other writers `PIL.Image.Image.save`."""

every_writer = pytest.mark.parametrize("name", WRITERS)


def contents(folder):
    """Return the bytes of every file except videos: the encoder gives other bytes in each run."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.suffix != ".mp4"
    }


@every_writer
def test_the_same_seed_writes_the_same_files_and_another_seed_others(tmp_path, name):
    one, two, other = (WRITERS[name](tmp_path / str(number), seed=seed) for number, seed in enumerate((5, 5, 6)))
    assert contents(one) == contents(two)
    assert contents(one) != contents(other)


@every_writer
def test_an_existing_folder_is_refused_and_kept(tmp_path, name):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists: name a folder that does not"):
        WRITERS[name](tmp_path)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


@every_writer
def test_nothing_is_left_when_the_disk_is_full(tmp_path, monkeypatch, name):
    def fail(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SAVES.get(name, "PIL.Image.Image.save"), fail)
    with pytest.raises(OSError, match="No space"):
        WRITERS[name](tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@every_writer
def test_nothing_is_left_when_a_writer_is_interrupted(tmp_path, name):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        WRITERS[name](tmp_path / "set", progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("flickr8k", {"train": 0}, "nothing to draw"),
        ("parts", {"train": 0}, "nothing to draw"),
        ("pretraining", {"scenes": 0, "parts": 0}, "nothing to draw: scenes=0, parts=0, val_scenes=0, val_parts=0"),
        ("sounds", {"train": 0}, "nothing to draw"),
        ("sounds", {"val": -1}, "nothing to draw"),
        ("sounds", {"captions_per_image": 0}, "1 to 10"),
        ("sounds", {"size": 8}, "16 pixels"),
        ("sounds", {"seed": -1}, "must not be negative"),
        ("questions", {"train": 0}, "nothing to draw"),
        ("questions", {"val": -1}, "nothing to draw"),
        ("questions", {"test": 3}, "at least 16 questions"),
        ("questions", {"size": 8}, "16 pixels"),
        ("mvtec", {"train": 0, "damaged": 0}, "nothing to draw"),
        ("mvtec", {"train": 100_001}, "a kind has at most 100000 parts"),
        ("walking", {"subjects": 0}, r"5 folds \(at least 2\) with 3 conditions in each need 15 subjects: got subjects=0"),  # noqa: E501
        ("walking", {"subjects": 14}, "need 15 subjects: got subjects=14"),
        ("walking", {"folds": 1}, "1 folds .at least 2. with 3 conditions in each need 6 subjects"),
        ("walking", {"clips_per_subject": 0}, "at least one clip: got clips_per_subject=0"),
        ("walking", {"size": 63}, "size must be an even number of pixels, at least 32: got size=63"),
        ("walking", {"size": 16}, "at least 32: got size=16"),
        ("walking", {"seconds": 0.01}, "at least one frame: got fps=24, seconds=0.01"),
        ("walking", {"fps": 0}, "at least one frame: got fps=0"),
        ("walking", {"seed": -1}, "must not be negative: got seed=-1"),
        ("walking", {"conditions": ("normal", "limp")}, "different ones of normal, dragging foot.*got normal, limp"),
        ("walking", {"conditions": ("normal",)}, "not only normal: got normal"),
        ("walking", {"conditions": ("stiff arm", "stiff arm")}, "must be different ones"),
    ],
)  # fmt: skip
def test_arguments_that_give_no_set_are_one_clear_error_and_leave_nothing(tmp_path, name, changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        WRITERS[name](tmp_path / "set", **changed)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
