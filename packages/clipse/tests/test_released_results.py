"""The original project's files under `results/`: the commands write them, with the documented columns."""

import csv
from pathlib import Path

DOCUMENTED = ["method", "seed", "epoch", "model", "pretrained"]
DOCUMENTED += [f"{metric}_{side}" for side in ("I2T", "T2I") for metric in ("R1", "R5", "R10", "MR", "mAP10")]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_train_and_eval_write_the_documented_columns(clipse, small, tmp_path):
    assert clipse("train", *small, "name=first")[0] == 0
    training = rows(tmp_path / "results" / "training_first.csv")
    assert list(training[0]) == [*DOCUMENTED, "rsum", "val_loss", "step"]
    found = [(row["method"], row["model"], row["epoch"]) for row in training]
    assert found == [("clip", "scratch", "1"), ("clip", "scratch", "2")]

    code, printed, _ = clipse("eval", tmp_path / "runs" / "clipse" / "first")
    assert code == 0
    registry = tmp_path / "results" / "run_registry.csv"
    assert f"written to {registry}" in printed
    (row,) = rows(registry)
    assert list(row) == ["run", "split", *DOCUMENTED, "rsum"]
    assert (row["run"], row["split"], row["epoch"]) == ("first", "test", "2")


def test_a_comparison_writes_them_for_every_run(clipse, small, tmp_path):
    command = ["compare", "losses=[clip]", "seeds=[1,2]", *small, "trainer.max_epochs=1", "name=some"]
    assert clipse(*command)[0] == 0
    results = tmp_path / "runs" / "compare" / "some" / "results"
    assert sorted(file.name for file in results.glob("*.csv")) == ["training_clip-s1.csv", "training_clip-s2.csv"]
