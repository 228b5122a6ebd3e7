"""Devices and processes: which to use, how many there are, and the share of each."""

from typing import Any

import torch
from torch import Tensor

from clip_common.config import TrainerConfig


def pick_device(devices: str = "auto") -> torch.device:
    """Return the device for work outside the Trainer: a GPU if available, unless `devices` says CPU.

    Args:
        devices: The value of `trainer.devices`.
    """
    return torch.device("cuda" if torch.cuda.is_available() and not devices.startswith("cpu") else "cpu")


def device_count(config: TrainerConfig) -> int:
    """Return how many devices `trainer.devices` and `trainer.nodes` mean; every node is taken to be like this one."""
    kind, _, count = config.devices.partition(":")
    if kind == "auto":
        here = max(1, torch.cuda.device_count())
    elif kind == "cpu":
        here = int(count or 1)
    else:
        here = len(kind.split(",")) if "," in kind else int(kind)
    return here * config.nodes


def check_one_device(config: TrainerConfig, *, verb: str) -> None:
    """Raise ValueError if training would take several processes; `verb` trains several runs in one process."""
    several = config.devices not in ("auto", "cpu", "cpu:1", "1") or config.nodes > 1
    if several or (config.devices == "auto" and torch.cuda.device_count() > 1):
        raise ValueError(
            f"trainer.devices={config.devices}, trainer.nodes={config.nodes}: {verb} trains one "
            "run after another on one device: set trainer.devices=1 (or cpu) and trainer.nodes=1"
        )


def divide_batch(batch_size: int, *, world: int) -> int:
    """Return each rank's share of the global batch.

    Raises:
        ValueError: The batch does not divide evenly.
    """
    if batch_size % world:
        near = max(1, batch_size // world) * world
        raise ValueError(
            f"data.batch_size={batch_size} does not divide among {world} devices: "
            f"set a multiple of {world}, e.g. data.batch_size={near}"
        )
    return batch_size // world


def gather_from_ranks(parts: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Return the parts of all processes, in the order of their ranks; tensors must be on the CPU."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return parts
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, parts)
    return [part for rank in gathered for part in rank]
