"""`clipse tune`: what it leaves, resume, what it does not touch, what it refuses."""

import csv
import math
import shutil
import sys

import optuna
import pytest
from filelock import FileLock

from clip_common.config import load_config
from clipse import Config
from clipse.config import LossConfig, SearchRange
from clipse.data import read_records
from clipse.series.tune import list_search_ranges, tune
from clipse.training.losses import SANWBandpass, SANWDebias, build_loss
from clipse.training.modules import RetrievalModule

DEBIAS = {"alpha": 1.0, "delta": 0.6, "lam": 4.0}
"""Defaults of the searched parameters of `sanw_debias`."""


@pytest.fixture
def quick(small):
    return [*small, "trainer.max_epochs=1", "name=study"]


def configured(overrides):
    return load_config(Config, overrides=overrides, package="clipse")


def test_a_search_leaves_its_trials_and_overrides_that_can_be_pasted(quick, tmp_path, scenes):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    overrides = [*quick, f"data.root={data}"]
    for record in read_records(configured(overrides).data).splits["test"]:
        record.path.write_bytes(b"broken")  # the test split is not touched
    found = tune(configured(overrides), loss="sanw_debias", trials=3)
    assert [trial.number for trial in found.trials] == [0, 1, 2]
    assert found.trials[0].parameters == DEBIAS
    assert found.best.rsum == max(trial.rsum for trial in found.trials)
    pasted = configured([*overrides, *found.overrides]).loss
    assert pasted == LossConfig(name="sanw_debias", parameters=found.best.parameters)
    build_loss(pasted)
    with found.csv.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["rsum"]) for row in rows] == [trial.rsum for trial in found.trials]
    assert rows[0].keys() == {"trial", "alpha", "delta", "lam", "rsum"}
    assert f"`{' '.join(found.overrides)}`" in found.table.read_text(encoding="utf-8")
    assert found.plot.stat().st_size > 10_000
    for trial in found.trials:  # a trial is what its run was trained with
        run = found.folder / "clipse" / f"trial-{trial.number:03d}" / "config.yaml"
        assert load_config(Config, config=run).loss == LossConfig(name="sanw_debias", parameters=trial.parameters)


def test_a_stopped_search_goes_on_with_the_trial_it_was_in_and_ends_as_an_uninterrupted_one(
    quick, tmp_path, monkeypatch
):
    whole = tune(configured([*quick, f"runs={tmp_path / 'whole'}"]), loss="sanw_bandpass", trials=3)
    count = 0
    original = RetrievalModule.training_step

    def stop(self, batch, batch_idx):
        nonlocal count
        count += 1
        if count == 5:  # in the second trial
            raise RuntimeError("stopped here")
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalModule, "training_step", stop)
        with pytest.raises(RuntimeError, match="stopped here"):
            tune(configured(quick), loss="sanw_bandpass", trials=3)
    first = tune(configured(quick), loss="sanw_bandpass", trials=2)
    assert first.trials == whole.trials[:2]
    assert tune(configured(quick), loss="sanw_bandpass", trials=3).trials == whole.trials


def test_a_search_that_is_killed_while_the_first_trial_is_drawn_still_begins_with_the_default(quick, monkeypatch):
    original = optuna.Study.ask

    def stop(self, distributions):
        original(self)  # the trial runs, its parameters are not drawn yet
        raise RuntimeError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "ask", stop)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="stopped here"):
                tune(configured(quick), loss="sanw_debias", trials=1)
    found = tune(configured(quick), loss="sanw_debias", trials=1)
    assert [trial.parameters for trial in found.trials] == [DEBIAS]


def test_a_trial_that_diverges_has_failed_and_the_search_goes_on(quick, monkeypatch):
    original, count, diverge_at, said = RetrievalModule.training_step, 0, {5}, []

    def step(self, batch, batch_idx):
        nonlocal count
        count += 1
        return original(self, batch, batch_idx) * (math.nan if count in diverge_at else 1.0)

    monkeypatch.setattr(RetrievalModule, "training_step", step)
    found = tune(configured(quick), loss="sanw_debias", trials=3, announce=said.append)
    assert [trial.number for trial in found.trials] == [0, 2]
    assert said[2].startswith("trial 2 of 3 failed: the loss is nan at step 2 (epoch 1, batch 1), samples: ")
    # the next point is another one, not the same again
    assert len({line.partition(": ")[2] for line in said}) == 4
    before = count
    assert tune(configured(quick), loss="sanw_debias", trials=3).trials == found.trials
    assert count == before

    diverge_at.update(range(1000))
    for _ in range(2):
        with pytest.raises(ValueError, match="the loss of every trial became NaN or infinite: lower optim"):
            tune(configured([*quick, "name=hot"]), loss="sanw_debias", trials=2)
    assert count == before + 2


def test_one_process_at_a_time_works_on_a_search_and_on_the_data_it_began_with(clipse, quick, tmp_path, scenes):
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    overrides = [*quick, f"data.root={data}"]
    command = ["tune", "loss=sanw_debias", "trials=1", *overrides]
    assert clipse(*command)[0] == 0
    with FileLock(tmp_path / "runs" / "tune" / "study" / ".lock"):  # as another process holds it
        code, _, error = clipse(*command)
    assert code == 2
    assert "another process" in error
    assert len(error.splitlines()) == 1

    val = next(data.glob("*devImages.txt"))
    val.write_text("".join(val.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    code, _, error = clipse(*command)
    assert code == 2
    assert "study: the images or captions of val have changed since it was started" in error


def test_parameters_that_are_set_are_not_searched_and_the_band_stays_a_band():
    def left_open(name: str, **parameters: float) -> dict[str, SearchRange]:
        return list_search_ranges(LossConfig(parameters=parameters), name)

    assert list(left_open("sanw_bandpass", alpha=1.0)) == ["m1", "m2", "gamma"]
    assert left_open("sanw_bandpass", m2=0.3)["m1"].high < 0.3
    assert left_open("sanw_bandpass", m1=0.7)["m2"].low > 0.7
    for name, made in (("sanw_debias", SANWDebias()), ("sanw_bandpass", SANWBandpass())):
        assert all(found.low <= getattr(made, key) <= found.high for key, found in left_open(name).items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss=clip"], "loss=clip: there is nothing to tune; known: sanw_bandpass, sanw_debias"),
        (["trials=0"], "trials=0: expected a whole number from 1"),
        (["trials=many"], "trials: expected int, got 'many'"),
        (
            ["loss=sanw_debias", "loss.alpha=1", "loss.delta=0.5", "loss.lambda=4"],
            "loss=sanw_debias: every parameter is set (alpha, delta, lam): leave at least one out",
        ),
        (["trainer.devices=0,1"], "tune trains one run after another on one device"),
        (["loss=sanw_debias", "loss.m1=0.2"], "does not take"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(clipse, quick, tmp_path, overrides, message):
    code, _, error = clipse("tune", *quick, *overrides)
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_without_optuna_the_error_names_the_extra(clipse, quick, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, error = clipse("tune", *quick)
    assert code == 2
    assert "tune needs Optuna; install it with: pip install optuna" in error


def test_the_command_prints_the_best_and_refuses_another_search_in_its_folder(clipse, quick):
    code, printed, error = clipse("tune", "loss=sanw_debias", "trials=1", *quick)
    assert code == 0, error
    assert "loss.name=sanw_debias loss.alpha=1 loss.delta=0.6 loss.lambda=4" in printed
    code, _, error = clipse("tune", "loss=sanw_bandpass", "trials=1", *quick)
    assert code == 2
    assert "was started with another configuration (name: sanw_debias → name: sanw_bandpass)" in error
