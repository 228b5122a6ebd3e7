"""Each knob of the trainer and of the optimizer does what it says."""

import dataclasses
import math
import runpy
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import Logger
from torch.nn.functional import scaled_dot_product_attention

from clip_common.config import OptimConfig, TrainerConfig
from clip_common.training import check_trainer, fit, load_weights

toy = runpy.run_path(str(Path(__file__).with_name("toy_training.py")), run_name="toy")
names = ("Toy", "Watched", "Data", "rows_of", "weights_of")
Toy, Watched, Data, rows_of, weights_of = (toy[name] for name in names)


@pytest.fixture
def train(tmp_path):
    """Fit a module with trainer overrides."""
    return toy["fitter"](tmp_path)


def test_max_epochs_is_how_many_epochs_run(train):
    assert [train(Toy(), f"max_epochs={epochs}")[1].steps for epochs in (1, 3)] == [5, 15]


def test_precision_is_what_the_model_computes_in(train):
    seen = {}
    for precision in ("32-true", "bf16-mixed", "64-true"):
        module = Watched()
        try:
            train(module, f"precision={precision}", "fast_dev_run=true")
        finally:
            seen[precision] = module.dtypes
    assert seen == {"32-true": {torch.float32}, "bf16-mixed": {torch.bfloat16}, "64-true": {torch.float64}}


def test_attention_of_a_mixed_precision_fit_on_a_cpu_is_float32(train):
    class Attending(Toy):
        def on_train_batch_start(self, batch, batch_idx):
            with torch.autocast("cpu", torch.bfloat16):
                self.dtype_of_attention = scaled_dot_product_attention(*torch.randn(3, 1, 1, 4, 8)).dtype

    for devices in ("cpu", "auto"):
        module = Attending()
        train(module, "precision=bf16-mixed", "fast_dev_run=true", f"devices={devices}")
        on_cpu = module.trainer.strategy.root_device.type == "cpu"  # elsewhere the CPU's autocast is left alone
        assert module.dtype_of_attention == (torch.float32 if on_cpu else torch.bfloat16)


def test_devices_nodes_and_strategy_reach_the_trainer(train, monkeypatch, tmp_path):
    module = Toy()
    train(module, "fast_dev_run=true")
    assert (module.trainer.world_size, type(module.trainer.accelerator).__name__) == (1, "CPUAccelerator")
    made = {}

    class MadeError(Exception):
        pass

    def trainer(**arguments):
        made.update(arguments)
        raise MadeError

    monkeypatch.setattr(L, "Trainer", trainer)
    with pytest.raises(MadeError):
        train(Toy(), "devices=cpu:2", "nodes=3", "strategy=ddp")
    expected = {"accelerator": "cpu", "devices": 2, "num_nodes": 3, "strategy": "ddp"}
    assert {name: made[name] for name in expected} == expected
    with pytest.raises(MadeError):
        train(Toy(), "devices=0,1")
    assert (made["accelerator"], made["devices"]) == ("auto", "0,1")


def test_settings_that_do_not_exist_are_one_line(train):
    with pytest.raises(ValueError, match=r"^trainer: .*warp") as error:
        train(Toy(), "strategy=warp")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^trainer: .*warp"):
        check_trainer(TrainerConfig(devices="cpu", strategy="warp"))
    check_trainer(TrainerConfig(devices="cpu"))


def test_settings_that_do_not_exist_change_nothing_in_the_run(train):
    run, _ = train(Toy(), "max_epochs=1")
    files = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"^trainer: .*warp"):
        fit(Toy(), Data(), TrainerConfig(devices="cpu", strategy="warp"), run, monitor="val/accuracy", mode="max")
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == files


def test_accumulate_averages_batches_into_one_step(train):
    run, result = train(Watched(), "accumulate=2", "max_epochs=1")
    assert result.steps == 3  # of 5 batches
    assert [row["step"] for row in rows_of(run)] == ["1", "2", "3"]


def test_grad_clip_bounds_the_norm_of_all_gradients(train):
    class Steep(Toy):
        def training_step(self, batch, batch_idx):
            return 1000 * super().training_step(batch, batch_idx)

        def configure_optimizers(self):
            return torch.optim.SGD(self.head.parameters(), lr=1.0)

    moved = {}
    for clip in ("0.5", "null"):
        module = Steep()
        before = weights_of(module)
        train(module, f"grad_clip={clip}", "fast_dev_run=true")
        moved[clip] = float((weights_of(module) - before).norm())
    assert moved["0.5"] == pytest.approx(0.5, rel=1e-3)
    assert moved["null"] > 10


def test_checkpoint_every_saves_inside_epochs(train):
    inside, outside = Watched(), Watched()
    train(inside, "checkpoint_every=2", "max_epochs=1")
    train(outside, "max_epochs=1")
    assert sorted(set(inside.saved)) == [2, 4, 5]
    assert sorted(set(outside.saved)) == [5]


def test_early_stop_ends_a_fit_that_no_longer_improves(train):
    class Constant(Watched):
        def validation_step(self, batch, batch_idx):
            self.log("val/accuracy", 0.5)

    assert train(Constant(), "early_stop=2", "max_epochs=9")[1].epochs == 3
    assert train(Constant(), "max_epochs=4")[1].epochs == 4


def test_ema_is_validated_and_saved_while_training_goes_on_with_the_weights(train):
    class Averaged(Watched):
        def on_fit_start(self):
            self.average, self.in_validation = weights_of(self), []

        def on_train_batch_end(self, outputs, batch, batch_idx):
            step = self.global_step
            decay = min(0.9, (1 + step) / (10 + step))
            self.average = decay * self.average + (1 - decay) * weights_of(self)

        def on_validation_epoch_start(self):
            assert torch.allclose(weights_of(self), self.average, atol=1e-6)
            self.in_validation.append(True)

    module, plain = Averaged(), Watched()
    _, result = train(module, "ema=0.9")
    train(plain)
    assert module.in_validation == [True, True]
    assert torch.equal(weights_of(module), weights_of(plain))
    loaded = Toy()
    load_weights(loaded, result.last)
    assert torch.allclose(weights_of(loaded), module.average, atol=1e-6)
    assert not torch.allclose(weights_of(loaded), weights_of(module), atol=1e-3)


def test_compile_compiles_the_child_modules(train):
    with torch.compiler.set_stance("force_eager"):
        for compile in ("true", "false"):
            module = Toy()
            train(module, f"compile={compile}", "fast_dev_run=true")
            assert (module.head._compiled_call_impl is not None) == (compile == "true")


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_named(train, logger, monkeypatch):
    monkeypatch.setattr(sys.modules[fit.__module__], "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"trainer.logger={logger}: not installed; install it with: pip install"):
        train(Toy(), f"logger={logger}")
    with pytest.raises(ValueError, match=f"trainer.logger={logger}: not installed"):
        check_trainer(TrainerConfig(devices="cpu", logger=logger))


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_logger_gets_what_metrics_csv_gets(train, logger, monkeypatch):
    losses = []

    class Log(Logger):
        name = version = "log"

        def __init__(self, **arguments):
            super().__init__()

        def log_metrics(self, metrics, step=None):
            losses.extend([metrics["train/loss"]] if "train/loss" in metrics else [])

        def log_hyperparams(self, *arguments, **named):
            pass

    monkeypatch.setattr(sys.modules[fit.__module__], "find_spec", lambda name: name)
    for name in ("TensorBoardLogger", "WandbLogger"):
        monkeypatch.setattr(f"lightning.pytorch.loggers.{name}", Log)
    run, _ = train(Toy(), f"logger={logger}", "max_epochs=1")
    assert losses == pytest.approx([float(row["train/loss"]) for row in rows_of(run)], rel=1e-6)


def test_fast_dev_run_takes_one_batch_of_each_and_leaves_a_whole_run(train):
    module = Watched()
    run, result = train(module, "fast_dev_run=true")
    assert (len(module.rows), result.epochs, result.steps) == (1, 1, 1)
    assert result.best.exists()
    assert result.last.exists()
    assert run.ledger.done("fit")


def test_overfit_batches_trains_on_the_same_batches_each_epoch(train):
    module, usual = Watched(), Watched()
    train(module, "overfit_batches=2")
    epochs = [[rows for epoch, rows in module.rows if epoch == number] for number in (0, 1)]
    assert len(epochs[0]) == 2
    assert epochs[0] == epochs[1]
    train(usual)
    assert [rows for epoch, rows in usual.rows if epoch == 0] != [rows for epoch, rows in usual.rows if epoch == 1]


@pytest.mark.parametrize("profiler", ["simple", "advanced", "pytorch", "null"])
def test_the_profiler_writes_its_report_into_the_run(train, profiler):
    run, _ = train(Toy(), f"profiler={profiler}", "fast_dev_run=true")
    assert any(path.name.startswith("fit-profile") for path in run.path.iterdir()) == (profiler != "null")


def test_the_seed_decides_what_is_random(train):
    weights = []
    for seed in (0, 0, 1):
        module = Toy()
        train(module, f"seed={seed}", "max_epochs=1")
        weights.append(weights_of(module))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_warmup_and_schedule_decide_the_learning_rate_of_each_step(train):
    def rates(**optim):
        run, _ = train(Toy(optim=OptimConfig(lr=1.0, **optim)))
        return [float(row["lr"]) for row in rows_of(run)]

    cosine = [(1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]
    assert rates(warmup_epochs=1) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, *cosine], abs=1e-6)
    assert rates(warmup_epochs=0.4, schedule="constant") == pytest.approx([0.5] + [1.0] * 9)


def test_every_knob_has_a_test():
    tests = Path(__file__).read_text()
    assert [knob.name for knob in dataclasses.fields(TrainerConfig) if f"{knob.name}=" not in tests] == []
