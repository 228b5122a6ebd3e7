"""Killed, moved and finished runs are resumed; several ranks train as one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import count_lines, kill_when, rows, same, weights
from toy_runs import configured, losses

from clip_common.runs import Run
from clipse import score, train
from clipse.released.results import write_registry, write_training


def test_a_finished_run_that_is_resumed_stays_as_it_is(small, tmp_path):
    config = configured(small, "name=done", "trainer.max_epochs=1")
    run = train(config).run
    score(str(run.path))
    before, registered = run.result, rows(tmp_path / "runs" / "registry.csv")
    train(config, resume=run.path)
    assert run.result == before
    assert before.keys() == {"epochs", "steps", "skipped_images", "cut_captions", "val", "test"}
    assert rows(tmp_path / "runs" / "registry.csv") == registered
    assert [row["epoch"] for row in rows(write_training(config, run))] == ["1"]


def test_a_run_killed_while_it_was_scored_can_be_evaluated_and_resumed(small, tmp_path, monkeypatch):
    config = configured(small, "name=unscored", "trainer.max_epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr("clipse.training.experiment.score_records", lambda *arguments, **keywords: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config)
    run = Run.open(tmp_path / "runs" / "clipse" / "unscored")
    write_registry(score(str(run.path)))
    assert rows(tmp_path / "results" / "run_registry.csv")[0]["epoch"] == "1"
    train(config, resume=run.path)
    assert run.result.keys() == {"epochs", "steps", "skipped_images", "cut_captions", "val", "test"}
    assert [row["split"] for row in rows(tmp_path / "runs" / "registry.csv")] == ["test", "val"]


def test_a_run_that_was_moved_is_resumed_where_it_lies(small, tmp_path):
    config = configured(small, "name=moved", "trainer.max_epochs=1")
    moved = shutil.move(train(config).run.path, tmp_path / "archive" / "renamed")
    assert train(config, resume=moved).run.path == moved
    assert not (tmp_path / "clipse").exists()
    assert not (tmp_path / "runs" / "clipse" / "moved").exists()


def test_later_ranks_of_a_finished_run_publish_nothing(small, tmp_path, monkeypatch):
    config = configured(small, "name=ranks", "trainer.max_epochs=1")
    run = train(config).run
    shutil.rmtree(run.path / "model")
    monkeypatch.setenv("RANK", "1")
    assert train(config, resume=run.path).validation is None
    assert not (run.path / "model").exists()


SCRIPT = """
import sys
from pathlib import Path
from functools import partial
from clip_common.runs.resolve import resolve as resolve_run
from clipse.config import Config
from clipse.training.experiment import train
resolve = partial(resolve_run, Config, package="clipse")
resume = Path(sys.argv[2]) if sys.argv[1] == "resume" else None
train(resolve(resume=resume) if resume else resolve(overrides=sys.argv[2:]), resume=resume)
"""


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error


@pytest.mark.parametrize("loss", [pytest.param("clip", marks=pytest.mark.slow), "sanw_bandpass"])
def test_killed_at_any_step_and_resumed_equals_uninterrupted(small, tmp_path, loss):
    extra = [f"loss.name={loss}", "loss.references=ema", "data.augment=true"]
    extra += ["trainer.max_epochs=6", "trainer.checkpoint_every=1"]
    whole = train(configured(small, "name=whole", *extra)).run.path

    metrics = tmp_path / "runs" / "clipse" / "killed" / "metrics.csv"
    after = 5 + os.urandom(1)[0] % 8
    fresh = [sys.executable, "-c", SCRIPT, "fresh", *small, "name=killed", *extra]
    kill_when(lambda: count_lines(metrics) > after, fresh)
    killed = metrics.parent
    assert not (killed / "model").exists(), "it had finished before it was killed"
    finish(start("resume", killed))

    assert same(weights(whole), weights(killed))
    expected, found = (
        [(row["epoch"], row["step"], row["train/loss"], row["val/rsum"]) for row in rows(run / "metrics.csv")]
        for run in (whole, killed)
    )
    assert found == expected


@pytest.mark.slow
def test_two_ranks_train_as_one(small, tmp_path):
    one = train(configured(small, "name=one", "optim.lr=1e-4")).run.path
    script = tmp_path / "script.py"  # a file: Lightning starts the second rank by the same command
    script.write_text(SCRIPT, encoding="utf-8")
    options = [*small, "name=two", "optim.lr=1e-4", "trainer.devices=cpu:2", "trainer.strategy=ddp"]
    process = subprocess.run([sys.executable, script, "fresh", *options], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    two = tmp_path / "runs" / "clipse" / "two"
    first, second = (torch.tensor(losses(run)) for run in (one, two))
    torch.testing.assert_close(second, first, atol=1e-4, rtol=0)
    last, found = (torch.load(run / "checkpoints" / "fit" / "last.ckpt", weights_only=True) for run in (one, two))
    assert last["state_dict"].keys() == found["state_dict"].keys()
    for name, weight in last["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], weight, atol=1e-4, rtol=0)
    rsums = [[float(row["val/rsum"]) for row in rows(run / "metrics.csv") if row["val/rsum"]] for run in (one, two)]
    assert rsums[1] == pytest.approx(rsums[0], abs=1e-3)
