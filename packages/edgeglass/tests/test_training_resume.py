"""Killed and finished runs are resumed; several ranks train as one; a pair that one rank lacks hangs nobody."""

import json
from pathlib import Path

import pytest
import torch
from helpers.runs import rows
from toy_alignments import configured, losses
from toy_processes import check_killed_equals, make_script, train_on_two_ranks

from edgeglass.scoring.score import score
from edgeglass.training.experiment import train

SCRIPT = make_script(schema="Config", train="edgeglass.training.experiment.train")


def test_a_finished_run_that_is_resumed_stays_as_it_is(small, tmp_path):
    config = configured(small, "name=done", "trainer.max_epochs=1")
    run = train(config).run
    score(run.path)
    before, registered = run.result, rows(tmp_path / "runs" / "registry.csv")
    train(config, resume=run.path)
    assert run.result == before
    assert before.keys() == {"epochs", "steps", "skipped", "val", "test"}
    assert rows(tmp_path / "runs" / "registry.csv") == registered


@pytest.mark.parametrize(
    "extra",
    [
        ["fusion.kind=gated", "encoders.audio.pooling=attention", "encoders.vision.dropout=0.1"],
        ["loss.negatives=corpus", "loss.corpus_every=3"],
    ],
    ids=["batch", "corpus"],
)
def test_killed_at_any_step_and_resumed_equals_uninterrupted(small, tmp_path, extra):
    extra = [*extra, "trainer.max_epochs=8", "trainer.checkpoint_every=1", "trainer.ema=0.9"]
    whole = train(configured(small, "name=whole", *extra)).run.path
    check_killed_equals(whole, SCRIPT, [*small, *extra], monitor="val/R@1")


def test_two_ranks_train_as_one_though_one_may_lack_a_pair(small, tmp_path, lacking):
    """Most samples have no sound: many a batch of a rank has no pair with one."""
    extra = [f"data.root={lacking}", "optim.lr=1e-4", "fusion.kind=concat"]
    one = train(configured(small, "name=one", *extra)).run.path
    two = train_on_two_ranks(SCRIPT, [*small, "name=two", *extra], tmp_path)
    torch.testing.assert_close(torch.tensor(losses(two)), torch.tensor(losses(one)), atol=2e-4, rtol=0)
    last, found = (torch.load(run / "checkpoints" / "fit" / "last.ckpt", weights_only=True) for run in (one, two))
    assert last["state_dict"].keys() == found["state_dict"].keys()
    for name, weight in last["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], weight, atol=2e-4, rtol=0)
    recalls = [[row["val/R@1"] for row in rows(run / "metrics.csv") if row["val/R@1"]] for run in (one, two)]
    assert recalls[0] == recalls[1]


@pytest.mark.slow
def test_two_ranks_train_as_one_against_the_corpus(small, tmp_path):
    extra = ["loss.negatives=corpus", "optim.lr=1e-4"]
    one = train(configured(small, "name=one", *extra)).run.path
    two = train_on_two_ranks(SCRIPT, [*small, "name=two", *extra], tmp_path)
    last, found = (torch.load(run / "checkpoints" / "fit" / "last.ckpt", weights_only=True) for run in (one, two))
    for name, weight in last["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], weight, atol=2e-4, rtol=0)


@pytest.fixture
def lacking(parts, tmp_path) -> Path:
    """The world with a sound for every sixth sample of a split."""
    lines = [json.loads(line) for line in (parts / "world" / "data.jsonl").read_text().splitlines()]
    file = tmp_path / "lacking.jsonl"
    for number, row in enumerate(lines):
        row["image"] = str(parts / "world" / row["image"])
        audio = row.pop("audio")
        if number % 6 == 0:
            row["audio"] = str(parts / "world" / audio)
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file
