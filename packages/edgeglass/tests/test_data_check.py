"""`check`: everything decoded, problems and remarks named, contents counted."""

import numpy as np
import pytest
import toy_captions
import toy_samples as toy

from edgeglass.config import MODALITIES, DataConfig
from edgeglass.data import DataError, check, read_samples
from edgeglass.data.check import PAIRS


def write_sound(folder, samples, **options) -> None:
    """Replace the sound of d, the test sample."""
    (folder / "sounds" / "d.wav").write_bytes(toy.wav(samples, **options))


@pytest.mark.parametrize("way", toy.WRITERS)
def test_counts_of_a_sound_set(tmp_path, way):
    toy.WRITERS[way](tmp_path)
    done = []
    report = check(tmp_path, progress=lambda *state: done.append(state))
    assert report.ok
    assert report.remarks == []
    assert report.format == way.split()[0]
    assert report.samples == {"train": 2, "val": 1, "test": 1}
    assert report.captions == {"train": 4, "val": 1, "test": 2}
    assert report.modalities["train"] == {"image": 2, "text": 2, "audio": 2}
    assert report.pairs["val"] == {"image-text": 1, "audio-text": 1, "image-audio": 1}
    assert done[-1] == (8, 8)


def test_modalities_and_pairs_of_samples_that_lack_some(tmp_path):
    toy.write_media(tmp_path)
    lines = toy.rows()
    del lines[0]["audio"]
    del lines[1]["captions"], lines[1]["image"]
    toy.write_rows(tmp_path, lines)
    report = check(tmp_path / "data.jsonl")
    assert report.modalities["train"] == {"image": 1, "text": 1, "audio": 1}
    assert report.pairs["train"] == {"image-text": 1, "audio-text": 0, "image-audio": 0}
    assert {modality for pair in PAIRS for modality in pair} == set(MODALITIES)


@pytest.mark.parametrize(
    ("kind", "name", "content", "said"),
    [
        ("images", "d.png", toy.png()[:50], "not a readable image"),
        ("images", "d.png", b"", "not a readable image"),
        ("sounds", "d.wav", b"RIFF and no sound", "d.wav"),
        ("sounds", "d.wav", b"", "d.wav"),
        ("sounds", "d.wav", toy.wav(np.zeros((0, 1))), "without samples"),
        ("sounds", "d.wav", toy.wav(np.full((160, 1), np.nan), subtype="FLOAT"), "NaN"),
    ],
    ids=["cut image", "empty image", "broken sound", "empty sound", "no samples", "nan"],
)
def test_what_cannot_be_decoded_is_a_problem(tmp_path, kind, name, content, said):
    toy.write_jsonl(tmp_path)
    (tmp_path / kind / name).write_bytes(content)
    report = check(tmp_path)
    assert not report.ok
    (problem,) = report.problems
    assert name in problem
    assert said in problem
    assert "\n" not in problem
    assert report.modalities["test"]["image" if kind == "images" else "audio"] == 0


def test_missing_files_and_empty_captions_are_problems(tmp_path):
    toy.write_jsonl(tmp_path)
    (tmp_path / "images" / "c.png").unlink()
    toy.write_rows(tmp_path, [*toy.rows()[:3], toy.rows()[3] | {"captions": ["", "one"]}])
    report = check(tmp_path)
    assert len(report.problems) == 2
    assert "c.png: no such file" in report.problems[0]
    assert report.problems[1] == "images/d.png: an empty caption"
    assert report.captions["test"] == 1


def test_bad_rows_of_a_caption_file_are_problems_with_their_lines(tmp_path):
    (tmp_path / "Images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "Images" / name).write_bytes(toy_captions.jpeg())
    rows = ["image,caption", "a.jpg,one", "no comma", "b.jpg,two", "../b.jpg,three"]
    (tmp_path / "captions.txt").write_text("\n".join(rows))
    report = check(tmp_path)
    assert report.format == "kaggle"
    assert [line.partition(": ")[0] for line in report.problems] == [
        f"{tmp_path / 'captions.txt'}, line {number}" for number in (3, 5)
    ]
    with pytest.raises(DataError, match=r"captions\.txt, line 3"):
        read_samples(DataConfig(root=str(tmp_path)))
    assert len(read_samples(DataConfig(root=str(tmp_path), on_error="skip")).problems) == 2


def test_a_broken_sound_in_a_parquet_file_is_named_by_its_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = [{"text": "a", "audio": toy.wav(toy.tone())}, {"text": "b", "audio": b"RIFF"}]
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "train.parquet")
    (problem,) = check(tmp_path).problems
    assert "train.parquet, row 1, audio: " in problem


def test_silent_and_clipped_sounds_are_remarked_but_fine(tmp_path):
    toy.write_jsonl(tmp_path)
    write_sound(tmp_path, np.zeros((1600, 1)))
    (tmp_path / "sounds" / "c.wav").write_bytes(toy.wav(np.clip(20 * toy.tone(), -1, 1)))
    report = check(tmp_path)
    assert report.ok
    assert len(report.remarks) == 2
    assert "c.wav: clipped, " in report.remarks[0]
    assert "d.wav: silent" in report.remarks[1]
    assert report.modalities["test"]["audio"] == 1


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (toy.tone(seconds=0.5, rate=8_000, channels=2), {"rate": 8_000}),
        (toy.tone(seconds=600, rate=8_000), {"rate": 8_000}),
        (toy.tone(seconds=0.001), {}),
        (toy.tone(rate=44_100), {"rate": 44_100, "subtype": "PCM_24"}),
    ],
    ids=["8 kHz stereo", "10 minutes", "16 samples", "44.1 kHz"],
)
def test_sounds_of_any_rate_and_length_are_fine(tmp_path, samples, options):
    toy.write_jsonl(tmp_path)
    write_sound(tmp_path, samples, **options)
    report = check(tmp_path)
    assert report.ok
    assert report.remarks == []


def test_contents_in_two_splits_under_different_names_are_remarked(tmp_path):
    toy.write_jsonl(tmp_path)
    (tmp_path / "images" / "d.png").write_bytes(toy.IMAGES["c"])
    for name in ("c", "d"):
        (tmp_path / "sounds" / f"{name}.wav").write_bytes(toy.wav(np.zeros((1600, 1))))  # equal, but silent
    report = check(tmp_path)
    assert report.ok
    (copy,) = [remark for remark in report.remarks if "silent" not in remark]
    assert "d.png: in test, with the same content as " in copy
    assert copy.endswith("c.png in val")


def test_a_set_that_cannot_be_aligned_has_a_problem(tmp_path):
    toy.write_media(tmp_path)
    toy.write_rows(tmp_path, [{"image": row["image"], "split": "train"} for row in toy.rows()])
    report = check(tmp_path)
    assert "holds image only" in report.problems[0]
    assert report.modalities["train"] == {"image": 4, "text": 0, "audio": 0}


def test_a_set_that_cannot_be_read_at_all(tmp_path):
    with pytest.raises(DataError, match="no set of a known format"):
        check(tmp_path)
