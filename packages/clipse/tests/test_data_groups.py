"""`data.together`: contrast pairs that stand in one batch."""

import re
from pathlib import Path

import pytest

from clip_common.config import load_config
from clip_common.synthetic import write_pretraining
from clipse import Config, read_records, train
from clipse.data import DataError, read_groups
from clipse.training.modules import RetrievalModule


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """A Flickr8k folder of scenes and of parts with and without their defects."""
    folder = tmp_path_factory.mktemp("parts") / "world"
    return write_pretraining(folder, scenes=16, parts=40, val_scenes=8, val_parts=8, size=32)


def records_of(folder: Path):
    return read_records(load_config(Config, overrides=[f"data.root={folder}"], package="clipse").data).splits["train"]


def test_group_numbers_by_hand(parts, tmp_path):
    records = records_of(parts)
    (tmp_path / "pairs.csv").write_text(
        f"image,group\n{records[0].name},a\n{records[2].name},a\n{records[3].name},b\nelsewhere.jpg,b\n",
        encoding="utf-8",
    )
    assert read_groups(tmp_path / "pairs.csv", records)[:5].tolist() == [0, 1, 0, 2, 3]


def test_a_run_trains_on_batches_that_hold_both_of_a_pair(parts, small, monkeypatch):
    seen = []
    step = RetrievalModule.training_step

    def watched(self, batch, batch_idx):
        seen.append(batch.names)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(RetrievalModule, "training_step", watched)
    overrides = [*small, f"data.root={parts}", "data.together=together.csv", "trainer.max_epochs=3"]
    train(load_config(Config, overrides=overrides, package="clipse"))
    pairs = apart = 0
    for batch in seen:
        for name in batch:
            if name.endswith("_damaged.jpg"):
                pairs += 1
                apart += name.replace("_damaged", "") not in batch
    assert pairs > 40
    assert apart <= len(seen) - 1  # at most one where a batch ends


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file; data.together is a CSV file"),
        ("name,pair\na.jpg,1\n", "no column image, group; needed are image,group, got name,pair"),
        ("", "no column image, group; needed are image,group, got nothing"),
        ("image,group\nother.jpg,1\n", "names none of the"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(parts, tmp_path, content, said):
    file = tmp_path / "ünïcode pairs.csv"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said) as error:
        read_groups(file, records_of(parts))
    assert re.search(r"\n", str(error.value)) is None


def test_an_absent_file_stops_the_run_before_it_begins(parts, small, clipse, tmp_path):
    code, _, said = clipse("train", *small, f"data.root={parts}", "data.together=pairs.csv")
    assert code == 2
    assert "pairs.csv: no such file" in said
    assert not (tmp_path / "runs" / "clipse").exists()


def test_topics_and_groups_together_are_refused(parts, small, clipse):
    overrides = ["data.together=together.csv", "data.topical.fraction=0.5", "data.topical.clusters=4"]
    code, _, said = clipse("train", *small, f"data.root={parts}", *overrides)
    assert code == 2
    assert "set one of them" in said
