"""Training on walking figures: what a run leaves, kill and resume, ranks, sets with holes, learning."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import count_lines, kill_when, rows, same, weights

from clip_common.config import load_config
from clip_common.errors import DataError
from clip_common.synthetic import write_walking
from clip_common.training import fit
from videoclip import Config, score, train
from videoclip.data.manifest import read_manifest, write_manifest
from videoclip.training.modules import AlignmentModule


def configured(small: list[str], *overrides: str) -> Config:
    return load_config(Config, overrides=[*small, *overrides])


def read(file: Path):
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_run_leaves_a_model_its_numbers_who_was_where_and_its_pictures(small, tmp_path, pictures):
    trained = train(configured(small, "name=whole", "model.map_guided=true", "trainer.max_epochs=2"))
    run = trained.run.path
    for name in ("config.yaml", "environment.json", "metrics.csv", "result.json", "README.md", "model/config.json"):
        assert (run / name).stat().st_size > 0, name
    plots = {"loss.png", "validation.png", "parts.png", "val-confusion.png", "val-similarity.png"}
    assert plots <= {plot.name for plot in trained.plots}

    logged = rows(run / "metrics.csv")
    steps = [row for row in logged if row["train/loss"]]
    assert len(steps) == 4  # 18 clips in batches of 8, two epochs
    for row in steps:
        parts = [float(row[f"train/loss_{name}"]) for name in ("classification", "contrastive", "token")]
        assert float(row["train/loss"]) == pytest.approx(sum(parts[:2]), rel=1e-5)
        assert parts[2] == 0
    assert len([row for row in logged if row["val/macro_f1"]]) == 2

    splits = read(run / "splits.json")["fit"]
    names = [set(splits[part]) for part in ("train", "val", "test")]
    assert [len(people) for people in names] == [9, 3, 3]
    assert len(set.union(*names)) == 15
    assert sorted(splits["train_labels"]) == [0] * 6 + [1] * 6 + [2] * 6

    result = read(run / "result.json")
    assert (result["epochs"], result["steps"], result["skipped_clips"]) == (2, 4, 0)
    assert result["val"]["metrics"] == pytest.approx(trained.validation.metrics)
    assert result["val"]["metrics"]["macro_f1"] == pytest.approx(
        max(float(row["val/macro_f1"]) for row in logged if row["val/macro_f1"]), abs=1e-6
    )
    registered = rows(tmp_path / "runs" / "registry.csv")
    assert [(row["name"], row["method"], row["split"]) for row in registered] == [
        ("whole", "3dcnn-spatiotemporal-clip", "val")
    ]


def test_the_weights_are_the_best_by_the_metric_that_selects(small, monkeypatch):
    watched = []
    monkeypatch.setattr(
        "videoclip.training.experiment.fit", lambda *given, **how: watched.append(how["monitor"]) or fit(*given, **how)
    )
    trained = train(configured(small, "select=retrieval_r1", "trainer.max_epochs=2"))
    assert watched == ["val/retrieval_r1"]
    logged = [row for row in rows(trained.run.path / "metrics.csv") if row["val/macro_f1"]]
    assert len(logged) == 2
    for row in logged:
        ways = [float(row[f"val/retrieval_r1_{way}"]) for way in ("v2a", "a2v")]
        assert float(row["val/retrieval_r1"]) == pytest.approx(sum(ways) / 2)
    ways = [trained.validation.metrics[f"retrieval_r1_{way}"] for way in ("v2a", "a2v")]
    assert sum(ways) / 2 == pytest.approx(max(float(row["val/retrieval_r1"]) for row in logged), abs=1e-6)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(small, trained):
    again = train(configured(small)).run.path
    assert same(weights(again), weights(trained()))
    assert not same(weights(trained("trainer.seed=1")), weights(trained()))


@pytest.mark.parametrize("override", ["data.cache=false data.cache_dir=null", "data.workers=2"])
def test_a_cache_and_loader_processes_change_nothing_but_the_time(trained, override):
    assert same(weights(trained(*override.split())), weights(trained()))


def test_a_finished_run_that_is_resumed_stays_as_it_is_also_where_it_was_moved(small, tmp_path):
    config = configured(small, "name=done")
    run = train(config).run
    score(run.path)
    before, registered = run.result, rows(tmp_path / "runs" / "registry.csv")
    moved = shutil.move(run.path, tmp_path / "archive")
    assert train(config, resume=moved).run.path == moved
    assert read(moved / "result.json") == before
    assert {"val", "test"} <= before.keys()
    assert rows(tmp_path / "runs" / "registry.csv") == registered
    assert not run.path.exists()


def test_a_resumed_run_needs_the_clips_that_it_began_with(small, walks, tmp_path, monkeypatch):
    records = read_manifest(walks / "manifest.csv")
    manifest = write_manifest(records, tmp_path / "set.csv")
    config = configured(small, "name=changed", f"data.root={manifest}")
    with monkeypatch.context() as patch:
        patch.setattr(AlignmentModule, "training_step", stopped_at(1))
        with pytest.raises(RuntimeError, match="stopped here"):
            train(config)
    write_manifest(records[:-1], manifest)
    run = tmp_path / "runs" / "videoclip" / "changed"
    with pytest.raises(DataError, match=r"set\.csv: its .* split is not what it was when .*changed was trained: rest"):
        train(config, resume=run)
    write_manifest(records, manifest)
    assert train(config, resume=run).validation is not None


def stopped_at(step: int):
    """A training step that raises at the given one, counted from 0 over all fits."""
    original, count = AlignmentModule.training_step, 0

    def step_or_stop(self, batch, batch_idx):
        nonlocal count
        count += 1
        if count > step:
            raise RuntimeError("stopped here")
        return original(self, batch, batch_idx)

    return step_or_stop


SCRIPT = """
import sys
from clip_common.config import load_config
from videoclip import Config, cross_validate, train
verb = {"train": train, "cv": cross_validate}[sys.argv[1]]
verb(load_config(Config, overrides=sys.argv[2:]))
"""


def killed(verb: str, overrides: list[str], metrics: Path, *, after: int) -> None:
    """Start a run, and kill it once `metrics` has more than `after` lines."""
    kill_when(lambda: count_lines(metrics) > after, [sys.executable, "-c", SCRIPT, verb, *overrides])


@pytest.mark.parametrize("batches", ["shuffled", pytest.param("subject_unique", marks=pytest.mark.slow)])
def test_killed_at_any_step_and_resumed_equals_uninterrupted(small, tmp_path, batches):
    extra = [f"data.batches={batches}", "model.map_guided=true", "model.map_dropout=0.3", "model.lambda_token=0.1"]
    extra += ["trainer.max_epochs=4", "trainer.checkpoint_every=1"]
    whole = train(configured(small, "name=whole", *extra)).run.path

    run = tmp_path / "runs" / "videoclip" / "killed"
    overrides = [*small, "name=killed", *extra]
    killed("train", overrides, run / "metrics.csv", after=2 + os.urandom(1)[0] % 5)
    assert not (run / "model").exists(), "it had finished before it was killed"
    train(configured(overrides), resume=run)

    assert same(weights(whole), weights(run))
    expected, found = (
        [(row["epoch"], row["step"], row["train/loss"], row["val/macro_f1"]) for row in rows(one / "metrics.csv")]
        for one in (whole, run)
    )
    assert found == expected
    predicted = [score(one).predictions.logits_NK for one in (whole, run)]
    assert np.array_equal(*predicted)


@pytest.mark.slow
@pytest.mark.parametrize("batches", ["shuffled", "subject_unique"])
def test_two_ranks_leave_one_run_with_the_split_of_one(small, trained, tmp_path, batches):
    script = tmp_path / "script.py"  # a file: Lightning starts the second rank by the same command
    script.write_text(SCRIPT, encoding="utf-8")
    overrides = [*small, "name=two", "trainer.devices=cpu:2", "trainer.max_epochs=2", f"data.batches={batches}"]
    done = subprocess.run([sys.executable, script, "train", *overrides], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "videoclip" / "two"
    assert read(run / "splits.json") == read(trained() / "splits.json")
    steps = [float(row["train/loss"]) for row in rows(run / "metrics.csv") if row["train/loss"]]
    assert len(steps) == 4
    assert np.isfinite(steps).all()
    # every clip of the validation split is in the figure, whichever rank saw it
    shares = [6 * float(row["val/accuracy"]) for row in rows(run / "metrics.csv") if row["val/accuracy"]]
    assert shares == pytest.approx(np.round(shares), abs=1e-5)
    assert read(run / "result.json")["val"]["clips"] == 6
    assert len(rows(tmp_path / "runs" / "registry.csv")) == 1


def broken(walks: Path, folder: Path, *names: str) -> Path:
    """A copy of the set in which some videos are cut to nothing that can be read."""
    shutil.copytree(walks, folder)
    for name in names:
        (folder / "videos" / name).write_bytes(f"no video, {name}".encode())  # the same bytes would be a leak
    return folder


@pytest.mark.parametrize("cached", ["true", "false"])
def test_a_clip_that_cannot_be_read_stops_the_run_or_is_left_out_and_counted(small, walks, tmp_path, cached):
    # one clip of each part
    parts = read_manifest(walks / "manifest.csv")
    some = [next(record for record in parts if record.fold == fold) for fold in range(5)]
    names = [record.video.relative_to(walks / "videos").as_posix() for record in some]
    root = broken(walks, tmp_path / "broken", *names)
    overrides = ["name=holes", f"data.root={root}", f"data.cache={cached}"]
    overrides += ["data.cache_dir=null"] if cached == "false" else []
    if cached == "true":
        with pytest.raises(DataError, match="videos/subject_"):
            train(configured(small, *overrides))
        assert not (tmp_path / "runs" / "videoclip").exists()
    run = train(configured(small, *overrides, "data.on_error=skip")).run
    assert run.result["skipped_clips"] == 5
    split = read(run.path / "splits.json")["fit"]
    names = {name for part in ("train", "val", "test") for clips in split[part].values() for name in clips}
    assert len(names) == 25
    assert not names & {record.clip_id for record in some}
    assert score(run.path).evaluation.clips == len([name for clips in split["test"].values() for name in clips])


def test_a_part_of_which_nothing_can_be_read_is_refused(small, walks, tmp_path):
    tested = [record.video for record in read_manifest(walks / "manifest.csv") if record.fold == 0]
    root = broken(walks, tmp_path / "broken", *(str(video.relative_to(walks / "videos")) for video in tested))
    with pytest.raises(DataError, match="no clip of the test subjects can be read: restore some"):
        train(configured(small, f"data.root={root}", "data.on_error=skip"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=19", "data.batch_size=19 is more than the 18 training clips: set data.batch_size to at most"),
        ("data.batch_size=7 trainer.devices=cpu:2", "data.batch_size=7 does not divide among 2 devices"),
        ("data.batches=subject_unique data.batch_size=10", "9 training subjects do not fill a batch of 10 clips"),
        ("data.folds=6 data.fold=5", "data.folds=6 changes nothing: it needs a set without a fold column, or with one"),
        ("data.subjects=40", "data.subjects=40: expected 3 \\(one per class\\) to 9"),
        ("model.model_class_num=2", "set model.model_class_num=3"),
        ("trainer.devices=cpu:8", "6 validation clip\\(s\\) are too few for 8 devices"),
        ("trainer.logger=wandb", "trainer.logger=wandb: not installed"),
        ("data.root=nowhere", "nowhere: no such file or folder"),
        ("model.clip_backbone=mc3_18 model.weights=none.pth", r"none\.pth: no such file"),
    ],
)
def test_what_cannot_train_is_refused_before_a_run_is_made(small, tmp_path, override, message):
    with pytest.raises(ValueError, match=message) as raised:
        train(configured(small, "name=refused", *override.split()))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "runs" / "videoclip").exists()


def test_a_name_that_is_taken_is_refused(small, trained):
    run = trained()
    with pytest.raises(ValueError, match="exists"):
        train(configured(small, f"runs={run.parents[1]}", f"name={run.name}"))


def test_clips_without_labels_take_no_part(small, walks, tmp_path):
    records = read_manifest(walks / "manifest.csv")
    some = [replace(record, label=None) if record.clip_id.endswith("01") else record for record in records]
    manifest = write_manifest(some, tmp_path / "some.csv")
    run = train(configured(small, f"data.root={manifest}", "name=some")).run.path
    split = read(run / "splits.json")["fit"]
    assert {name for part in ("train", "val", "test") for clips in split[part].values() for name in clips} == {
        record.clip_id for record in records if record.clip_id.endswith("00")
    }
    none = write_manifest([replace(record, label=None) for record in records], tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"none\.csv: no clip has a label"):
        train(configured(small, f"data.root={none}"))


@pytest.mark.parametrize("control", ["absent", "uniform"])
def test_maps_that_say_nothing_leave_a_loss_of_cross_entropy_and_finite_figures(small, control):
    overrides = [f"data.control={control}", "model.map_guided=true", "model.lambda_token=0.5", f"name={control}"]
    run = train(configured(small, *overrides)).run
    for row in rows(run.path / "metrics.csv"):
        if row["train/loss"]:
            assert float(row["train/loss_contrastive"]) == float(row["train/loss_token"]) == 0
            assert float(row["train/loss"]) == float(row["train/loss_classification"])
    metrics = score(run.path).evaluation.metrics
    assert np.isfinite(list(metrics.values())).all()
    assert not [name for name in metrics if name.startswith(("retrieval", "align"))]
    assert all(torch.isfinite(tensor).all() for tensor in weights(run.path).values() if tensor.is_floating_point())


def test_classes_that_no_validation_or_test_subject_has_are_no_nan(small, walks, tmp_path):
    """Of class 2 two people: where one is tested nobody validates it, elsewhere nobody is tested."""
    records = read_manifest(walks / "manifest.csv")
    rare = sorted({record.subject_id for record in records if record.label == 2})
    manifest = write_manifest(
        [record for record in records if record.subject_id not in rare[2:]], tmp_path / "rare.csv"
    )
    missing = set()
    for fold in (0, 4):
        run = train(configured(small, f"data.root={manifest}", f"name=rare{fold}", f"data.fold={fold}")).run
        missing |= set(read(run.path / "splits.json")["fit"]["missing_classes"])
        tested = score(run.path).evaluation
        assert np.isfinite(list(tested.metrics.values())).all()
        logged = [float(row["val/loss"]) for row in rows(run.path / "metrics.csv") if row["val/loss"]]
        assert np.isfinite(logged).all()
    assert missing == {"val", "test"}


def test_one_subject_has_no_interval_and_the_card_says_none(small, walks, tmp_path):
    manifest = write_manifest(
        [
            replace(record, label=0, fold=number)
            for number, record in enumerate(read_manifest(walks / "manifest.csv")[::2][:4])
        ],
        tmp_path / "four.csv",
    )
    run = train(configured(small, f"data.root={manifest}", "data.batch_size=2")).run
    assert run.result["val"]["subjects"] == 1
    card = (run.path / "README.md").read_text()
    assert re.search(r"Validation macro F1 \d\.\d{3}, accuracy \d\.\d{3} over 1 clips of 1 subjects", card)
    assert "nan" not in card


@pytest.mark.slow
def test_the_full_method_learns_what_is_wrong_with_walks_of_people_it_never_saw(tmp_path):
    """60 people, 12 of them tested. Always the same class is 0.17; seen: 0.52. R@5 by chance is 0.14; seen: 0.67."""
    root = write_walking(tmp_path / "walks", subjects=60, clips_per_subject=3, size=64, fps=8)
    overrides = [f"data.root={root}", f"runs={tmp_path / 'runs'}", "data.size=64", "data.batch_size=8"]
    overrides += ["model.map_guided=true", "model.clip_feature_dim=64", "optim.lr=5e-4"]
    overrides += ["trainer.precision=32-true", "trainer.devices=cpu"]
    scores = {}
    for name, extra in (
        ("untrained", ["optim.lr=0", "optim.weight_decay=0", "trainer.max_epochs=1"]),
        ("full", ["trainer.max_epochs=20"]),
    ):
        run = train(configured(overrides, f"name={name}", *extra)).run
        scores[name] = score(run.path).evaluation.metrics
    assert scores["untrained"]["macro_f1"] < 0.4 < scores["full"]["macro_f1"]
    assert scores["untrained"]["retrieval_r5_v2a"] < 0.3 < scores["full"]["retrieval_r5_v2a"]
