"""`fit`: its result, and errors that lose nothing."""

import json
import math
import random
import resource
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from clip_common.config import TrainerConfig
from clip_common.runs import Run
from clip_common.training import CheckpointError, ResumableLoader, ShuffledBatchSampler, fit, load_weights
from clip_common.training.determinism import get_random_state, seed_everything, set_random_state

TOY = Path(__file__).with_name("toy_training.py")
toy = runpy.run_path(str(TOY), run_name="toy")
names = ("Toy", "Watched", "Data", "rows_of", "weights_of")
Toy, Watched, Data, rows_of, weights_of = (toy[name] for name in names)


@pytest.fixture
def train(tmp_path):
    """Fit a module with trainer overrides."""
    return toy["fitter"](tmp_path)


# ------------------------------------------------------------------------------------------------------ what is left


def test_a_fit_leaves_metrics_the_best_and_the_last_checkpoint(train):
    module = Watched()
    run, result = train(module)
    assert (result.epochs, result.steps) == (2, 10)
    assert result.best == run.path / "checkpoints/fit/best.ckpt"
    assert result.last == run.path / "checkpoints/fit/last.ckpt"
    validated = rows_of(run, "val/accuracy")
    assert [(row["phase"], row["epoch"], row["step"]) for row in validated] == [("fit", "1", "5"), ("fit", "2", "10")]
    assert result.best_score == max(float(row["val/accuracy"]) for row in validated)
    assert [(row["epoch"], row["step"]) for row in rows_of(run)] == [(str(1 + i // 5), str(i + 1)) for i in range(10)]
    assert {path.name for path in result.last.parent.iterdir()} == {"best.ckpt", "last.ckpt"}

    run.ledger.start("fit")
    half_written = result.last.with_name(".last.ckpt.17.tmp")  # what a kill leaves
    half_written.touch()
    _, again = train(Toy(), name=run.name, resume=True)
    assert again == result
    assert not half_written.exists()


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_checkpoint_is_that_of_the_best_epoch(train, mode):
    class Scripted(Watched):
        def on_validation_epoch_end(self):
            self.log("val/score", torch.tensor([1.0, 3.0, math.nan, 0.0])[self.current_epoch])

    _, result = train(Scripted(), "max_epochs=4", monitor="val/score", mode=mode)
    best = torch.load(result.best, weights_only=True)
    assert (best["global_step"], result.best_score) == {"max": (10, 3.0), "min": (20, 0.0)}[mode]


def test_checkpoints_hold_trained_weights_and_plain_containers_only(train):
    class Hoarder(Watched):
        def __init__(self, path):
            super().__init__()
            self.save_hyperparameters()

    _, result = train(Hoarder(Path("anything")))
    last = torch.load(result.last, weights_only=True)
    assert set(last["state_dict"]) == {name for name in Toy().state_dict() if not name.startswith("frozen")}
    best = torch.load(result.best, weights_only=True)
    assert set(best) == {"state_dict", "epoch", "global_step", "pytorch-lightning_version"}


def test_the_best_weights_load_and_other_architectures_do_not(train, tmp_path):
    module = Watched()
    _, result = train(module, "max_epochs=1")
    other = Toy()
    load_weights(other, result.best)
    assert torch.equal(weights_of(other), weights_of(module))

    wider = Toy()
    wider.head[2] = torch.nn.Linear(16, 5)
    with pytest.raises(CheckpointError, match=r"another shape of head\.2\.weight \(4, 16\) instead of \(5, 16\), head"):
        load_weights(wider, result.best)
    deeper = Toy()
    deeper.head.append(torch.nn.Linear(4, 4))
    with pytest.raises(CheckpointError, match=r"it lacks head\.3\.bias, head\.3\.weight$"):
        load_weights(deeper, result.best)
    other.head[2].requires_grad_(False)
    with pytest.raises(CheckpointError, match=r"it also has head\.2\.bias, head\.2\.weight$"):
        load_weights(other, result.best)

    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(result.best.read_bytes()[:-1000])
    for path, message in ((torn, "truncated"), (tmp_path / "absent.ckpt", "no such checkpoint")):
        with pytest.raises(CheckpointError, match=message) as error:
            load_weights(Toy(), path)
        assert "\n" not in str(error.value)


def test_a_fit_is_not_resumed_into_another_architecture(train):
    train(Toy(), name="same")
    (run, _) = train(Toy(), name="same", resume=True)
    run.ledger.path.unlink()
    wider = Toy()
    wider.head[2] = torch.nn.Linear(16, 5)
    with pytest.raises(CheckpointError, match="of another architecture than the model"):
        train(wider, name="same", resume=True)


def test_phases_that_are_done_return_at_once_and_the_next_one_runs(train):
    text, image = Watched(), Watched()
    run, first = train(text, name="phases", phase="text")
    _, again = train(text, name="phases", phase="text", resume=True)
    assert again == first
    assert len(text.rows) == 10
    train(image, name="phases", phase="image", resume=True)
    assert len(image.rows) == 10
    assert [row["phase"] for row in rows_of(run)] == ["text"] * 10 + ["image"] * 10
    assert list(run.ledger.phases()) == ["text", "image"]


def test_random_states_come_back_from_a_file(tmp_path):
    def draw():
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]

    seed_everything(3)
    random.gauss(0, 1)
    state = get_random_state()
    first = draw()
    torch.save(state, tmp_path / "state.pt")
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == first
    seed_everything(4)
    assert draw() != first


# --------------------------------------------------------------------------------------------------- what goes wrong


def test_a_loss_that_is_not_finite_stops_before_the_weights_and_names_the_samples(train, tmp_path):
    class Diverging(Watched):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * math.nan if self.global_step == 6 else loss

    module = Diverging()
    with pytest.raises(ValueError, match=r"the loss is nan at step 7 \(epoch 2, batch 1\), samples: rows \[") as error:
        train(module, name="nan", **{"phase": "fit"})
    assert str(module.rows[-1][1]) in str(error.value)
    assert "\n" not in str(error.value)
    assert bool(torch.isfinite(weights_of(module)).all())
    run = Run.open(tmp_path / "toy" / "nan")
    assert [row["step"] for row in rows_of(run)] == ["1", "2", "3", "4", "5", "6"]
    assert torch.load(run.path / "checkpoints/fit/last.ckpt", weights_only=True)["global_step"] == 5


def test_a_contrastive_loss_that_stays_at_chance_warns_once(train, monkeypatch):
    class Collapsed(Toy):
        contrastive_chance = math.log(8)

        def training_step(self, batch, batch_idx):
            scatter = 0.1 if self.global_step % 2 else -0.1  # single losses miss the margin, their mean does not
            loss = 0 * self.head(self.frozen(batch[0])).sum() + math.log(8) + scatter
            self.log("train/loss", loss)
            return loss

    train(Collapsed(), name="short")  # too few steps to tell: a warning would be an error here
    monkeypatch.setattr("clip_common.training.guards.CHANCE_STEPS", 4)
    with pytest.warns(UserWarning, match=r"step 4: over the last 4 steps .* within 0.02 of 2.079, its value") as warned:
        train(Collapsed())
    assert len([warning for warning in warned if "0.02 of" in str(warning.message)]) == 1


def test_a_full_disk_loses_nothing_and_the_fit_can_go_on(train, tmp_path):
    class FullDisk(Watched):
        limit = None

        def on_train_epoch_start(self):
            if self.current_epoch == 1 and self.limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.RLIM_INFINITY))

    expected = Toy()
    train(expected, name="expected")
    for limit in (4000, 100):  # too small for a checkpoint; too small for the next rows as well
        module = FullDisk()
        module.limit = limit
        name = f"disk {limit}"
        try:
            with pytest.raises(OSError):
                train(module, name=name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        run = Run.open(tmp_path / "toy" / name)
        folder = run.path / "checkpoints/fit"
        assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
        assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 5
        resumed = Toy()
        train(resumed, name=name, resume=True)
        assert torch.equal(weights_of(resumed), weights_of(expected))
        assert run.metrics.path.read_text() == (tmp_path / "toy/expected/metrics.csv").read_text()


def test_a_monitor_that_is_not_logged_and_a_loader_that_cannot_resume_are_named(train):
    with pytest.raises(ValueError, match=r"monitor 'val/rsum' was not logged .*; logged: .*val/accuracy"):
        train(Toy(), monitor="val/rsum")

    class Plain(Data):
        def train_dataloader(self):
            return self.val_dataloader()

    with pytest.raises(ValueError, match=r"returned a DataLoader: return a clip_common\.training.ResumableLoader"):
        train(Toy(), data=Plain())


def test_a_run_in_which_another_process_trains_is_left_alone(train, tmp_path):
    run, result = train(Toy(), "max_epochs=1", name="same")
    half_written = result.last.with_name(".last.ckpt.17.tmp")
    half_written.touch()
    code = (
        "import sys; from clip_common.runs import Run\n"
        "with Run.open(sys.argv[1]).locked(): print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for resume in (True, False):
            arguments = {"monitor": "val/accuracy", "mode": "max", "phase": "fit", "resume": resume}
            run.ledger.start("fit")
            with pytest.raises(ValueError, match="same is being trained by another process: wait until that ends"):
                fit(Toy(), Data(), TrainerConfig(devices="cpu"), run, **arguments)
        other.stdin.close()
    assert half_written.exists()
    assert len(rows_of(run)) == 5


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_sample_s_error_in_a_worker_is_its_own(train, split):
    class Broken(toy["Points"]):
        def __getitem__(self, index):
            raise ValueError(f"row {index}: not an image; mend it")

    class BrokenData(Data):
        def train_dataloader(self):
            sampler = ShuffledBatchSampler(40, batch_size=8)
            points = Broken() if split == "train" else toy["Points"]()
            return ResumableLoader(points, batch_sampler=sampler, num_workers=1)

        def val_dataloader(self):
            return DataLoader(Broken(), num_workers=1)

    with pytest.raises(ValueError, match=r"^row \d+: not an image; mend it$"):
        train(Toy(), data=BrokenData())


def test_ctrl_c_is_a_keyboard_interrupt(train):
    class Interrupted(Toy):
        def training_step(self, batch, batch_idx):
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted())
    assert signal.getsignal(signal.SIGINT) is before


def test_an_epoch_is_one_plain_line_in_a_pipe_and_lightning_is_silent(train, capfd):
    train(Toy())
    shown = capfd.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all("train/loss" in line and "val/accuracy" in line for line in lines)


# ------------------------------------------------------------------------------------------------- several processes


@pytest.mark.slow
def test_two_ranks_write_one_run_and_resume(tmp_path):
    def run(name, **options):
        options = {"root": str(tmp_path), "name": name, "trainer": ["devices=cpu:2", "strategy=ddp"]} | options
        return subprocess.run(
            [sys.executable, str(TOY), json.dumps(options)], capture_output=True, text=True, check=False
        )

    assert run("whole").returncode == 0
    assert run("killed", kill=["inside step 4"]).returncode != 0
    assert run("killed", resume=True).returncode == 0
    whole, killed = (
        torch.load(tmp_path / "toy" / name / "weights.pt", weights_only=True) for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    metrics = [(tmp_path / "toy" / name / "metrics.csv").read_text() for name in ("whole", "killed")]
    assert metrics[0] == metrics[1]
