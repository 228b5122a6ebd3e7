"""Loading a set: merged rows, splits, leaks, held-out samples, missing and broken files, empty captions."""

import shutil

import pytest
import toy_samples as toy
from toy_samples import read, refusal

from edgeglass.data import DataError, Sample
from edgeglass.data.splits import check_leaks, draw_splits, hold_out


def without(row: dict, *keys: str) -> dict:
    return {key: value for key, value in row.items() if key not in keys}


def test_rows_of_the_same_files_are_one_sample_with_all_captions(tmp_path):
    toy.write_media(tmp_path)
    lines = [
        {"image": "images/c.png", "audio": "sounds/c.wav", "caption": "one", "split": "train"},
        {"image": "images/c.png", "caption": "of the image alone", "split": "train"},
        {"image": "images/../images/c.png", "audio": "sounds/c.wav", "caption": "two"},
        {"audio": "sounds/c.wav", "caption": "of the sound alone", "split": "train"},
        {"caption": "a text alone", "split": "train"},
        {"caption": "a text alone", "split": "train"},
    ]
    toy.write_rows(tmp_path, lines)
    samples = read(tmp_path).splits["train"]
    assert [sample.captions for sample in samples] == [
        ("one", "two"),
        ("of the image alone",),
        ("of the sound alone",),
        ("a text alone",),
        ("a text alone",),
    ]
    assert [sample.id for sample in samples] == [0, 1, 2, 3, 4]
    assert samples[3].name.endswith("data.jsonl, line 5")


@pytest.mark.parametrize("key", ["image", "audio"])
def test_a_file_in_two_splits_is_named(tmp_path, key):
    toy.write_jsonl(tmp_path)
    lines = toy.rows()
    lines[3][key] = lines[0][key]  # a test sample with a file of a training sample
    toy.write_rows(tmp_path, lines)
    text = refusal(tmp_path)
    assert lines[0][key] in text
    assert "in two splits, train and test: keep it in one" in text


def test_the_same_row_in_two_splits_is_refused(tmp_path):
    toy.write_jsonl(tmp_path)
    toy.write_rows(tmp_path, [*toy.rows(), toy.rows()[0] | {"split": "val"}])
    assert "ein hund.png: in two splits, train and val" in refusal(tmp_path)


def samples_of(count: int, *, shared: int = 1) -> list[Sample]:
    """`shared` sounds for each image."""
    from pathlib import Path

    return [Sample(n, f"s{n}", image=Path(f"{n // shared}.png"), audio=Path(f"{n}.wav")) for n in range(count)]


def test_without_splits_they_are_drawn_by_name_and_seed():
    samples = samples_of(100)
    drawn = draw_splits(samples, seed=0)
    assert [sum(sample.split == split for sample in drawn) for split in ("train", "val", "test")] == [80, 10, 10]
    assert [sample.id for sample in drawn] == list(range(100))
    assert draw_splits(samples, seed=0) == drawn
    assert draw_splits(samples, seed=1) != drawn
    backwards = draw_splits(samples[::-1], seed=0)
    assert backwards[::-1] == drawn
    assert sorted(sample.split for sample in draw_splits(samples_of(3), seed=0)) == ["test", "train", "val"]
    assert [sample.split for sample in draw_splits(samples_of(2), seed=0)] == ["train", "train"]


def test_new_samples_hardly_move_others():
    before, after = draw_splits(samples_of(200), seed=0), draw_splits(samples_of(210), seed=0)
    moved = sum(one.split != other.split for one, other in zip(before, after, strict=False))
    assert moved <= 10


def test_samples_that_share_a_file_are_drawn_into_the_same_split():
    drawn = draw_splits(samples_of(100, shared=5), seed=3)
    check_leaks(drawn)
    assert [sum(sample.split == split for sample in drawn) for split in ("train", "val", "test")] == [80, 10, 10]
    train, val = hold_out(drawn, count=12, seed=0)
    check_leaks([*train, *val])
    assert len(val) == 10  # two groups of five; a third would be too many
    with pytest.raises(DataError, match="more samples than that share each file"):
        hold_out(drawn, count=4, seed=0)


def test_files_shared_in_a_chain_stay_together():
    from pathlib import Path

    chain = [
        Sample(0, "a", image=Path("1.png"), audio=Path("1.wav")),
        Sample(1, "b", image=Path("2.png"), audio=Path("1.wav")),
        Sample(2, "c", image=Path("2.png"), audio=Path("2.wav")),
        Sample(3, "d", image=Path("3.png")),
        Sample(4, "e", image=Path("4.png")),
    ]
    splits = [sample.split for sample in draw_splits(chain, seed=0)]
    assert len(set(splits[:3])) == 1
    assert sorted({splits[0], splits[3], splits[4]}) == ["test", "train", "val"]


def test_held_out_samples_leave_the_training_split(tmp_path):
    toy.write_media(tmp_path)
    toy.write_rows(tmp_path, [row | {"split": "train"} for row in toy.rows()])
    splits = read(tmp_path, hold_out=2).splits
    assert [len(split) for split in splits.values()] == [2, 2, 0]
    assert {sample.split for sample in splits["val"]} == {"val"}
    assert read(tmp_path, hold_out=2, split_seed=0).splits == splits
    assert any(read(tmp_path, hold_out=2, split_seed=seed).splits != splits for seed in range(1, 6))
    assert "of 4 training samples, 1 to 2 can be held out" in refusal(tmp_path, hold_out=3)
    toy.write_rows(tmp_path, toy.rows())
    assert "has a val split of 1: leave data.hold_out at 0" in refusal(tmp_path, hold_out=1)


def test_samples_without_a_split_beside_others_with_one_are_left_out_and_counted(tmp_path):
    toy.write_media(tmp_path)
    toy.write_rows(tmp_path, [*toy.rows()[:3], without(toy.rows()[3], "split")])
    samples = read(tmp_path)
    assert [len(split) for split in samples.splits.values()] == [2, 1, 0]
    assert samples.unlisted == 1


def test_missing_files_are_refused_or_left_out_and_counted(tmp_path):
    toy.write_jsonl(tmp_path)
    (tmp_path / "images" / "ein hund.png").unlink()
    (tmp_path / "sounds" / "zwölf.wav").unlink()
    text = refusal(tmp_path)
    assert "2 file(s) are missing" in text
    assert "ein hund.png: no such file" in text
    samples = read(tmp_path, on_error="skip")
    assert [sample.modalities for sample in samples.splits["train"]] == [("text", "audio"), ("image", "text")]
    assert samples.skipped == len(samples.problems) == 2


def test_broken_files_are_left_out_and_counted_and_move_no_other_to_another_split(tmp_path):
    toy.write_media(tmp_path)
    toy.write_rows(tmp_path, [without(row, "split", "captions") for row in toy.rows()])
    whole = {sample.name: sample.split for split in read(tmp_path).splits.values() for sample in split}
    (tmp_path / "images" / "c.png").write_bytes(toy.png()[:40])
    (tmp_path / "sounds" / "c.wav").write_bytes(b"no sound")
    (tmp_path / "sounds" / "d.wav").write_bytes(b"")
    done = []
    samples = read_with_progress(tmp_path, done)
    kept = {sample.name: sample for split in samples.splits.values() for sample in split}
    assert {name: sample.split for name, sample in kept.items()} == {
        name: split for name, split in whole.items() if name != "images/c.png"
    }
    assert kept["images/d.png"].modalities == ("image",)
    assert samples.skipped == 3
    assert done[-1] == (8, 8)


def read_with_progress(root, done):
    from edgeglass.config import DataConfig
    from edgeglass.data import read_samples

    return read_samples(DataConfig(root=str(root), on_error="skip"), progress=lambda *state: done.append(state))


def test_a_file_that_several_samples_share_is_decoded_and_counted_once(tmp_path):
    toy.write_media(tmp_path)
    lines = [{"image": "images/c.png", "audio": f"sounds/{name}.wav", "split": "train"} for name in toy.CAPTIONS]
    toy.write_rows(tmp_path, lines)
    (tmp_path / "images" / "c.png").write_bytes(b"broken")
    toy.write_rows(tmp_path, [*lines, {"image": "images/d.png", "caption": "whole", "split": "train"}])
    done = []
    samples = read_with_progress(tmp_path, done)
    assert samples.skipped == 1
    assert done[-1] == (6, 6)
    assert [sample.has("image") for sample in samples.splits["train"]] == [False] * 4 + [True]


def test_empty_captions_are_refused_or_left_out(tmp_path):
    toy.write_media(tmp_path)
    lines = toy.rows()
    lines[0]["captions"] = [" a dog ", " ", None]
    toy.write_rows(tmp_path, lines)
    assert "2 empty caption(s): images/ein hund.png: an empty caption" in refusal(tmp_path)
    samples = read(tmp_path, on_error="skip")
    assert samples.splits["train"][0].captions == ("a dog",)
    assert (samples.skipped, len(samples.problems)) == (0, 2)


def test_a_set_of_one_modality_cannot_be_aligned(tmp_path):
    toy.write_media(tmp_path)
    toy.write_rows(tmp_path, [without(row, "audio", "captions") for row in toy.rows()])
    assert "holds image only; alignment needs two of image, text and audio" in refusal(tmp_path)


def test_a_set_without_any_caption_aligns_images_with_sounds(tmp_path):
    toy.write_media(tmp_path)
    toy.write_rows(tmp_path, [without(row, "captions") for row in toy.rows()])
    assert {sample.modalities for sample in read(tmp_path).splits["train"]} == {("image", "audio")}


def test_single_samples_of_one_modality_are_fine_but_not_all(tmp_path):
    toy.write_media(tmp_path)
    lines = toy.rows()
    toy.write_rows(tmp_path, [lines[0], without(lines[1], "image", "audio"), without(lines[2], "captions", "audio")])
    samples = read(tmp_path)
    assert [sample.modalities for sample in samples.splits["train"]] == [("image", "text", "audio"), ("text",)]
    toy.write_rows(tmp_path, [without(lines[1], "image", "audio"), without(lines[2], "captions", "audio")])
    assert "no sample has two of image, text and audio" in refusal(tmp_path)


def test_a_set_of_which_nothing_is_left(tmp_path):
    toy.write_jsonl(tmp_path)
    shutil.rmtree(tmp_path / "images")
    shutil.rmtree(tmp_path / "sounds")
    assert "holds text only" in refusal(tmp_path, on_error="skip")
