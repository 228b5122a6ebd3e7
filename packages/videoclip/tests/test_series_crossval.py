"""`videoclip cv`: disjoint folds, its table, and a killed one that goes on."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clip_common.config import load_config
from clip_common.errors import DataError
from clip_common.runs import Run
from videoclip import Config, cross_validate, train
from videoclip.data.manifest import read_manifest, write_manifest
from videoclip.scoring.predictions import Predictions
from videoclip.training.modules import AlignmentModule

FIGURES = ("accuracy", "macro_f1", "retrieval_r1_v2a")


def configured(small, *overrides) -> Config:
    return load_config(Config, overrides=[*small, *overrides])


@pytest.fixture
def three(walks, tmp_path) -> str:
    """The set without its fold column, dealt to three."""
    records = [replace(record, fold=None) for record in read_manifest(walks / "manifest.csv")]
    return f"data.root={write_manifest(records, tmp_path / 'three.csv')}"


def cells(table: Path) -> list[dict[str, str]]:
    lines = [
        line.strip("| ").split(" | ") for line in table.read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    ]
    assert all(set(cell) <= set("- |") for cell in lines[1])
    return [dict(zip(lines[0], line, strict=False)) for line in lines[2:]]


def test_everybody_is_tested_once_and_the_table_is_that_of_the_folds(small, three, walks, tmp_path, pictures):
    said: list[str] = []
    found = cross_validate(configured(small, three, "name=cv"), folds=3, announce=said.append)
    assert said[0] == "fold 0 (1 of 3): subjects 7 train, 3 val, 5 test"
    splits = json.loads((found.run.path / "splits.json").read_text())
    everybody = {record.subject_id for record in read_manifest(walks / "manifest.csv")}
    tested: list[str] = []
    for fold in range(3):
        parts = [set(splits[f"fold{fold}"][part]) for part in ("train", "val", "test")]
        assert set.union(*parts) == everybody
        assert sum(map(len, parts)) == len(everybody)
        tested += parts[2]
    assert sorted(tested) == sorted(everybody)

    lines = cells(found.table)
    assert len(lines) == 4
    for name in FIGURES:
        values = [fold[name] for fold in found.folds]
        assert [float(line[name]) for line in lines[:3]] == pytest.approx(values, abs=5e-4)
        assert lines[3][name] == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert (found.pooled.clips, found.pooled.subjects) == (30, 15)
    clips = [int(line["test clips"]) for line in lines[:3]]
    shares = [fold["accuracy"] * count / 30 for fold, count in zip(found.folds, clips, strict=True)]
    assert found.pooled.metrics["accuracy"] == pytest.approx(sum(shares))
    assert all(plot.stat().st_size > 5000 for plot in found.plots)
    with (tmp_path / "runs" / "registry.csv").open(newline="", encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["split"], float(row["accuracy"])) == (
        "cv",
        pytest.approx(np.mean([f["accuracy"] for f in found.folds])),
    )


def outcome(run: Path) -> list[object]:
    """What a cross-validation says: of each fold the logits, and the table."""
    logits = [Predictions.load(file).logits_NK.tolist() for file in sorted(run.glob("predictions-fold*.npz"))]
    return [*logits, (run / "cross-validation.md").read_text(encoding="utf-8")]


def test_stopped_in_the_second_fold_it_goes_on_there_and_ends_as_if_it_was_not(small, three, tmp_path, monkeypatch):
    settings = [three, "data.folds=3", "trainer.max_epochs=2", "trainer.checkpoint_every=1"]
    whole = cross_validate(configured(small, *settings, "name=whole")).run.path
    steps, stop_at = 0, 3
    original = AlignmentModule.training_step

    def counted(self, batch, batch_idx):
        nonlocal steps
        if steps == stop_at:
            raise RuntimeError("stopped here")
        steps += 1
        return original(self, batch, batch_idx)

    monkeypatch.setattr(AlignmentModule, "training_step", counted)
    config = configured(small, *settings, "name=stopped")
    with pytest.raises(RuntimeError, match="stopped here"):
        cross_validate(config)
    stopped = tmp_path / "runs" / "videoclip" / "stopped"
    assert [file.name for file in stopped.glob("predictions-*.npz")] == ["predictions-fold0.npz"]
    stop_at = -1
    cross_validate(config, resume=stopped)
    assert outcome(stopped) == outcome(whole)
    assert steps == 6  # one step a epoch of 14 clips, two epochs, three folds: none twice

    cross_validate(config, resume=stopped)
    assert steps == 6
    with (tmp_path / "runs" / "registry.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == ["whole", "stopped"]


SCRIPT = """
import sys
from clip_common.config import load_config
from videoclip import Config, cross_validate
cross_validate(load_config(Config, overrides=sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_in_the_second_fold_it_ends_as_if_it_was_not(small, three, tmp_path):
    settings = [*small, three, "data.folds=3", "trainer.max_epochs=4"]
    whole = cross_validate(configured(settings, "name=whole")).run.path
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *settings, "name=killed"], stderr=subprocess.PIPE)
    killed = tmp_path / "runs" / "videoclip" / "killed"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        metrics = killed / "metrics.csv"
        if metrics.exists() and "\nfold1,2," in metrics.read_text():
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (killed / "predictions-fold1.npz").exists(), "the fold had finished before it was killed"
    cross_validate(configured(settings, "name=killed"), resume=killed)
    assert outcome(killed) == outcome(whole)


@pytest.mark.parametrize(
    ("overrides", "folds", "message"),
    [
        ([], 3, "data.folds=3 changes nothing: it needs a set without a fold column, or with one of so many parts"),
        (["data.batch_size=19"], None, "set data.batch_size to at most 18"),
        (["trainer.devices=cpu:2"], None, "cv trains one run after another on one device"),
    ],
)
def test_what_cannot_be_validated_is_refused_before_anything_is_trained(small, tmp_path, overrides, folds, message):
    with pytest.raises(ValueError, match=message):
        cross_validate(configured(small, *overrides), folds=folds)
    assert not (tmp_path / "runs" / "videoclip").exists()


def test_the_default_number_of_folds_is_refused_too_if_the_column_has_another(small, walks, tmp_path):
    records = [replace(record, fold=min(record.fold, 3)) for record in read_manifest(walks / "manifest.csv")]
    root = write_manifest(records, tmp_path / "four.csv")
    with pytest.raises(ValueError, match="folds=5: the set's own fold column holds 4 parts: leave folds out"):
        cross_validate(configured(small, f"data.root={root}"), folds=5)


def test_a_run_is_gone_on_with_by_the_verb_that_began_it(small, trained, tmp_path):
    config = load_config(Config, config=trained() / "config.yaml")
    with pytest.raises(ValueError, match=r"begun by another verb: videoclip train --resume .*run-"):
        cross_validate(config, resume=trained())
    config = configured(small, "name=cv", "trainer.fast_dev_run=true")
    run = cross_validate(config).run.path
    with pytest.raises(ValueError, match=r"begun by another verb: videoclip cv --resume .*cv"):
        train(config, resume=run)
    series = Run.create("videoclip", config_yaml="", name="rows", root=tmp_path, group="ablate", verb="ablate").path
    with pytest.raises(ValueError, match="is a series of `videoclip ablate`: run that command again"):
        train(config, resume=series)


def test_a_clip_that_cannot_be_read_moves_nobody_to_another_fold(small, walks, tmp_path):
    def subjects(run: Path) -> list[list[str]]:
        splits = json.loads((run / "splits.json").read_text())
        return [sorted(splits[fold][part]) for fold in sorted(splits) for part in ("train", "val", "test")]

    shutil.copytree(walks, tmp_path / "holes")
    (tmp_path / "holes" / "videos" / "subject_07" / "clip_01.mp4").write_bytes(b"no video")
    fast = ["trainer.fast_dev_run=true"]
    whole = cross_validate(configured(small, "name=whole", *fast))
    holes = configured(small, "name=holes", f"data.root={tmp_path / 'holes'}", "data.on_error=skip", *fast)
    found = cross_validate(holes)
    assert subjects(found.run.path) == subjects(whole.run.path)
    assert (found.pooled.clips, found.run.result["skipped_clips"]) == (29, 1)
    with pytest.raises(DataError, match=r"clip_01\.mp4"):
        cross_validate(configured(small, f"data.root={tmp_path / 'holes'}"))
