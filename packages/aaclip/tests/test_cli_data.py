"""`aaclip data`: drawing, checking and splitting a set."""

import shutil
from pathlib import Path

import pytest
from helpers.commands import refused, succeeded
from PIL import Image


def test_data_synthetic_and_data_check(aaclip, tmp_path):
    root = tmp_path / "p [b]arts"
    printed = succeeded(
        aaclip("data", "synthetic", root, "--kinds", "mug, key", "--good=1", "--damaged=1", "--size=32")
    )
    assert "2 kinds" in printed
    assert str(root) in printed.replace("\n", "")
    assert len(list(root.rglob("test/*/*.png"))) == 2 * 7
    checked = succeeded(aaclip("data", "check", root))
    assert "every image and every mask can be read" in checked
    assert "[b]arts: mvtec" in checked
    refused(aaclip("data", "synthetic", root, "--good=1", "--damaged=0"), str(root), "exists")


def test_data_synthetic_of_kinds_that_tiny_has_not_seen(aaclip, tmp_path):
    from clip_common.synthetic.parts import HELD_KINDS

    succeeded(aaclip("data", "synthetic", tmp_path / "held", "--unseen", "--good=1", "--damaged=0", "--size=32"))
    assert {folder.name for folder in (tmp_path / "held").iterdir() if folder.is_dir()} == set(HELD_KINDS)
    refused(aaclip("data", "synthetic", tmp_path / "x", "--unseen", "--kinds=mug"), "--kinds", "--unseen")
    refused(aaclip("data", "synthetic", tmp_path / "x", "--kinds=mugg"), "mugg")
    assert not (tmp_path / "x").exists()


def test_data_check_lists_every_problem(aaclip, parts, tmp_path):
    root = Path(shutil.copytree(parts, tmp_path / "copy"))
    images, masks = sorted(root.rglob("test/hole/*.png")), sorted(root.rglob("ground_truth/crack/*.png"))
    images[0].write_text("no")
    masks[0].unlink()
    Image.new("L", (9, 9), 255).save(masks[1])
    code, printed, error = aaclip("data", "check", root)
    assert code == 2
    assert "3 problem(s), listed above" in error
    assert f"{images[0]}: not a readable image" in printed
    assert "no mask; expected" in printed
    assert "a mask of 9x9 pixels, but its image has 48x48" in printed


def test_data_check_of_no_set(aaclip, tmp_path):
    refused(aaclip("data", "check", tmp_path / "gone"), "gone", "no such folder")
    refused(aaclip("data", "check", tmp_path), "no labelled images found")
    refused(aaclip("data", "check", tmp_path, "--format=mvtecc"), "mvtecc", "mvtec")


@pytest.mark.filterwarnings("ignore:image score not fitted")
def test_data_split_prints_counts_and_writes_lists_that_train_and_test_take(aaclip, parts, small, tmp_path):
    out = tmp_path / "l [b]ists"
    printed = succeeded(aaclip("data", "split", parts, out, "--shot=4", "--seed=2"))
    assert "shot 4, seed 2" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["mug", "2", "2", "2", "4"] in rows  # of 4 flawless and 6 damaged ones
    assert ["star", "2", "2", "2", "4"] in rows
    for name, lines in (("train.jsonl", 8), ("test.jsonl", 12)):
        assert f"written to {out / name}" in printed
        assert len((out / name).read_text().splitlines()) == lines
    refused(aaclip("data", "split", parts, out, "--shot=4"), str(out), "exists")

    epochs = ["stages.text.epochs=1", "stages.image.epochs=1"]
    given = [*small, *epochs, f"data.root={out}", "data.mode=few_shot", "data.shot=4"]
    run = tmp_path / "runs" / "aaclip" / "few"
    assert "learned from 8 images of 2 classes" in succeeded(aaclip("train", *given, "name=few"))
    assert "few on l [b]ists" in succeeded(aaclip("test", run, out))
    assert "12 images" in (run / "test-l [b]ists" / "results.md").read_text(encoding="utf-8")
    refused(aaclip("test", run, parts), "to test on are among those", "learned from")  # some of its test split


def test_data_split_of_what_cannot_be_split(aaclip, parts, tmp_path):
    out = tmp_path / "out"
    refused(aaclip("data", "split", parts, out), "class mug: 4 normal image(s), data.shot=32 needs 16")
    refused(aaclip("data", "split", parts, out, "--shot=5"), "data.shot=5", "even number")
    refused(aaclip("data", "split", parts, out, "--shot=few"), "--shot")
    refused(aaclip("data", "split", tmp_path / "gone", out), "gone", "no such folder")
    refused(aaclip("data", "split", parts, out, "--shot=4", "--format=visa"), "not a set of the format visa")
    assert list(tmp_path.iterdir()) == []
