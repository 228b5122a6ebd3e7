"""A training that is killed with SIGKILL and resumed ends like one that was not: same weights, same metrics.csv."""

import multiprocessing
import os
import random
import runpy
import signal
import time
from pathlib import Path

import pytest
import torch

TOY = Path(__file__).with_name("toy_training.py")


@pytest.fixture(scope="module")
def processes():
    """Fresh processes with the imports of a training already done."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clip_common.training"])
    return context


@pytest.fixture(scope="module")
def train(processes):
    """Run the toy in its own process; return its exit code, -9 if it was killed."""

    def run(*, kill_after_seconds=None, **options):
        arguments = {"path_name": str(TOY), "init_globals": {"OPTIONS": options}, "run_name": "__main__"}
        process = processes.Process(target=runpy.run_path, kwargs=arguments)
        process.start()
        if kill_after_seconds is not None:
            time.sleep(kill_after_seconds)
            process.kill()  # nothing happens to one that has finished
        process.join()
        return process.exitcode

    return run


@pytest.fixture(scope="module")
def uninterrupted(train, tmp_path_factory):
    """A toy run that was not killed, for each set of trainer overrides."""
    root = tmp_path_factory.mktemp("uninterrupted")
    known = {}

    def run(*trainer, **options):
        key = (trainer, *options.items())
        if key not in known:
            known[key] = root / "toy" / str(len(known))
            assert train(root=root, name=known[key].name, trainer=trainer, **options) == 0
        return known[key]

    return run


def assert_same(run, other):
    weights, others = (torch.load(path / "weights.pt", weights_only=True) for path in (run, other))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert (run / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    for best in run.glob("checkpoints/*/best.ckpt"):
        mine, others = (torch.load(path, weights_only=True) for path in (best, other / best.relative_to(run)))
        assert mine["global_step"] == others["global_step"]
        assert all(torch.equal(mine["state_dict"][name], others["state_dict"][name]) for name in mine["state_dict"])


def kill_and_resume(train, root, *, moment, trainer, **options):
    assert train(root=root, kill=[moment], trainer=trainer, **options) == -signal.SIGKILL
    assert train(root=root, resume=True, trainer=trainer, **options) == 0
    return root / "toy" / "toy"


@pytest.mark.parametrize(
    "moment",
    [
        "inside step 1",  # before any checkpoint
        "saving at step 8",
        "inside step 9",  # in mid-epoch, right after the checkpoint
        "inside step 10",
        "after step 10",  # between the last step of an epoch and its validation
        "validating after step 10",
        "saving at step 10",
        "inside step 11",
    ],
)
def test_killed_with_checkpoints_inside_epochs_and_resumed_is_not_killed(train, uninterrupted, tmp_path, moment):
    trainer = ("checkpoint_every=4",)
    assert_same(kill_and_resume(train, tmp_path, moment=moment, trainer=trainer), uninterrupted(*trainer))


@pytest.mark.parametrize("moment", ["inside step 9", "validating after step 10", "saving at step 10"])
def test_killed_with_checkpoints_of_epochs_only_and_resumed_is_not_killed(train, uninterrupted, tmp_path, moment):
    assert_same(kill_and_resume(train, tmp_path, moment=moment, trainer=()), uninterrupted())


def test_killed_again_and_again_at_random_is_not_killed(train, uninterrupted, tmp_path):
    trainer = ("checkpoint_every=3", "max_epochs=30")
    expected = uninterrupted(*trainer)
    kills, code = 0, None
    while code != 0:
        seconds = random.uniform(0.3, 1.2) if kills < 4 else None
        code = train(root=tmp_path, resume=True, trainer=trainer, kill_after_seconds=seconds)
        kills += code != 0
    assert_same(tmp_path / "toy" / "toy", expected)


def test_a_moving_average_and_accumulated_gradients_resume_too(train, uninterrupted, tmp_path):
    trainer = ("ema=0.9", "accumulate=2", "checkpoint_every=2", "early_stop=2", "max_epochs=6")
    run = kill_and_resume(train, tmp_path, moment="inside step 9", trainer=trainer)
    assert_same(run, uninterrupted(*trainer))


@pytest.mark.parametrize("moment", ["inside step 1", "inside step 9"])
def test_a_run_of_two_phases_goes_on_in_the_second(train, uninterrupted, tmp_path, moment):
    phases = ("text", "image")
    run = kill_and_resume(train, tmp_path, moment=moment, trainer=("checkpoint_every=4",), phases=phases)
    assert_same(run, uninterrupted("checkpoint_every=4", phases=phases))


@pytest.mark.parametrize("trainer", [(), ("early_stop=1", "max_epochs=20")])
def test_killed_after_its_last_step_it_trains_no_further(train, uninterrupted, tmp_path, trainer):
    assert_same(kill_and_resume(train, tmp_path, moment="at the end", trainer=trainer), uninterrupted(*trainer))


def test_worker_processes_change_nothing(train, uninterrupted, tmp_path):
    trainer = ("checkpoint_every=4",)
    run = kill_and_resume(train, tmp_path, moment="inside step 10", trainer=trainer, workers=2)
    assert_same(run, uninterrupted(*trainer))


@pytest.mark.parametrize(
    ("moment", "step"),
    [
        ("in step 7", 7),
        ("in step 5", 5),  # the last of the first epoch: there is no checkpoint yet
        ("in step 10", 10),
        ("validating after step 10", 10),
        ("in step 25", 25),  # the last of all
    ],
)
def test_sigterm_saves_behind_a_step_or_an_epoch_and_ends(train, uninterrupted, tmp_path, moment, step):
    trainer = ("max_epochs=5",)
    assert train(root=tmp_path, kill=[f"SIGTERM {moment}"], trainer=trainer) == 143
    last = torch.load(tmp_path / "toy/toy/checkpoints/fit/last.ckpt", weights_only=True)
    assert last["global_step"] == step
    assert train(root=tmp_path, resume=True, trainer=trainer) == 0
    assert_same(tmp_path / "toy" / "toy", uninterrupted(*trainer))


def test_sigterm_waits_for_the_step_of_accumulated_gradients(train, uninterrupted, tmp_path):
    trainer = ("accumulate=2",)
    assert train(root=tmp_path, kill=["SIGTERM in step 5"], trainer=trainer) == 143
    last = torch.load(tmp_path / "toy/toy/checkpoints/fit/last.ckpt", weights_only=True)
    assert last["global_step"] == 5
    assert train(root=tmp_path, resume=True, trainer=trainer) == 0
    assert_same(tmp_path / "toy" / "toy", uninterrupted(*trainer))


@pytest.mark.parametrize(
    ("moment", "killed", "step"),
    [
        ("in step 7", "inside step 9", 7),
        ("in step 5", "inside step 7", 5),
        ("validating after step 10", "inside step 11", 10),
    ],
)
def test_slurm_s_signal_saves_and_then_requeues_the_job(train, uninterrupted, tmp_path, moment, killed, step):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    last = tmp_path / "toy/toy/checkpoints/fit/last.ckpt"
    scontrol.write_text(f'#!/bin/sh\ntest -f {last} && echo "$@" >> {tmp_path}/requeued\n')
    scontrol.chmod(0o755)
    slurm = {"JOB_ID": "17", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    environment["PATH"] = f"{scontrol.parent}:{os.environ['PATH']}"
    trainer = ("max_epochs=5",)
    assert train(root=tmp_path, trainer=trainer, kill=[f"SIGUSR1 {moment}", killed], environment=environment) == -9
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    assert torch.load(last, weights_only=True)["global_step"] == step
    assert train(root=tmp_path, resume=True, trainer=trainer) == 0
    assert_same(tmp_path / "toy" / "toy", uninterrupted(*trainer))
