"""Devices and processes: which one, how many, and each one's share."""

from typing import Any

import torch
from torch import Tensor

from clip_common.config import TrainerConfig


def pick_device(devices: str = "auto") -> torch.device:
    """Where what no Trainer moves runs: a GPU where there is one, unless `devices` (`trainer.devices`) says CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and not devices.startswith("cpu") else "cpu")


def device_count(config: TrainerConfig) -> int:
    """How many devices `trainer.devices` and `trainer.nodes` stand for, as far as this machine can tell."""
    kind, _, count = config.devices.partition(":")
    if kind == "auto":
        here = max(1, torch.cuda.device_count())
    elif kind == "cpu":
        here = int(count or 1)
    else:
        here = len(kind.split(",")) if "," in kind else int(kind)
    return here * config.nodes


def check_one_device(config: TrainerConfig, *, verb: str) -> None:
    """Raise ValueError where a run would take several processes: they cannot follow one another in one command."""
    several = config.devices not in ("auto", "cpu", "cpu:1", "1") or config.nodes > 1
    if several or (config.devices == "auto" and torch.cuda.device_count() > 1):
        raise ValueError(
            f"trainer.devices={config.devices}, trainer.nodes={config.nodes}: {verb} trains one "
            "run after another on one device: set trainer.devices=1 (or cpu) and trainer.nodes=1"
        )


def divide_batch(batch_size: int, *, world: int) -> int:
    """A rank's share of the batch of all.

    Raises:
        ValueError: The batch does not divide.
    """
    if batch_size % world:
        near = max(1, batch_size // world) * world
        raise ValueError(
            f"data.batch_size={batch_size} does not divide among {world} devices: "
            f"set a multiple of {world}, e.g. data.batch_size={near}"
        )
    return batch_size // world


def gather_from_ranks(parts: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """The parts of every process, rank after rank; tensors on the CPU."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return parts
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, parts)
    return [part for rank in gathered for part in rank]
