import pytest
import torch

from clip_common.config import TrainerConfig
from clip_common.devices import check_one_device, device_count, divide_batch, gather_from_ranks, pick_device


def test_what_no_trainer_moves_goes_to_the_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert pick_device() == torch.device("cuda")
    assert pick_device("0,1") == torch.device("cuda")
    assert pick_device("cpu:2") == torch.device("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pick_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("devices", "nodes", "count"),
    [("cpu", 1, 1), ("cpu:3", 1, 3), ("4", 2, 8), ("0,2", 1, 2), ("auto", 1, 5), ("auto", 2, 10)],
)
def test_devices_are_counted(monkeypatch, devices, nodes, count):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 5)
    assert device_count(TrainerConfig(devices=devices, nodes=nodes)) == count


@pytest.mark.parametrize(("size", "world", "near"), [(63, 2, 62), (7, 4, 4), (2, 3, 3)])
def test_a_batch_is_shared_out_whole_or_refused(size, world, near):
    assert divide_batch(near, world=world) * world == near
    with pytest.raises(ValueError, match=f"data.batch_size={near}"):
        divide_batch(size, world=world)


@pytest.mark.parametrize(("devices", "nodes"), [("cpu:2", 1), ("0,1", 1), ("2", 1), ("1", 2), ("auto", 2)])
def test_what_trains_run_after_run_takes_one_device(devices, nodes):
    with pytest.raises(ValueError, match=r"ablate trains one run after another on one device: set trainer.devices=1"):
        check_one_device(TrainerConfig(devices=devices, nodes=nodes), verb="ablate")


def test_one_device_is_allowed_and_auto_only_where_it_is_one(monkeypatch):
    for gpus in (0, 1):
        monkeypatch.setattr("torch.cuda.device_count", lambda gpus=gpus: gpus)
        for devices in ("auto", "cpu", "cpu:1", "1"):
            check_one_device(TrainerConfig(devices=devices), verb="ablate")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"trainer\.devices=auto"):
        check_one_device(TrainerConfig(devices="auto"), verb="ablate")


def test_one_process_has_its_own_parts():
    parts = [(torch.ones(2), torch.zeros(1))]
    assert gather_from_ranks(parts) is parts
