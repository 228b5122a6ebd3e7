"""Real captions and real spoken digits, where they are at hand."""

import json

import pytest
from helpers.real import real_data

from edgeglass.config import DataConfig
from edgeglass.data import check, read_samples

pytestmark = pytest.mark.real

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def test_the_real_captions():
    samples = read_samples(DataConfig(root=str(real_data("captions"))))
    assert samples.format == "karpathy"
    assert [len(split) for split in samples.splits.values()] == [600, 0, 201]
    report = check(real_data("captions"))
    assert report.ok
    assert report.pairs["train"] == {"image-text": 600, "audio-text": 0, "image-audio": 0}


def test_real_spoken_digits_in_a_list(tmp_path):
    lines = []
    for file in sorted(real_data("spoken_digits").glob("*.wav")):
        digit, speaker, _ = file.stem.split("_")
        split = "test" if speaker == "theo" else "train"
        lines.append(json.dumps({"audio": str(file), "caption": WORDS[int(digit)], "split": split}))
    (tmp_path / "digits.jsonl").write_text("\n".join(lines))
    report = check(tmp_path)
    assert report.ok
    assert report.samples == {"train": 750, "val": 0, "test": 250}
    assert report.remarks == []
