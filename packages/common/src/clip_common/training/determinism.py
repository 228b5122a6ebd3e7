"""Random states and data order, restored so that a resumed fit repeats one that was not killed."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from clip_common.loader import ResumableLoader


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class RandomState(Callback):
    """Saves the state of every rank's global generators, and restores it before the first batch of a resumed fit."""

    def __init__(self) -> None:
        self._states: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all ranks, as plain containers."""
        mine = get_random_state()
        if not dist.is_initialized():
            return {"ranks": [mine]}
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, mine)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts, because loading the rest may draw random numbers."""
        self._states = state_dict["ranks"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore this rank's state; a rank without a saved state keeps its seed."""
        if self._states is not None and trainer.global_rank < len(self._states):
            set_random_state(self._states[trainer.global_rank])
        self._states = None


def get_random_state() -> dict[str, Any]:
    """Return the state of the global generators as numbers, strings, lists and tensors."""
    version, numbers, gauss = random.getstate()
    numpy_state: dict[str, Any] = np.random.get_state(legacy=False)
    key = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "python": [version, list(numbers), gauss],
        "numpy": numpy_state | {"state": {"key": key, "pos": int(numpy_state["state"]["pos"])}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore a state that `get_random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    key = state["numpy"]["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(state["numpy"] | {"state": {"key": key, "pos": state["numpy"]["state"]["pos"]}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class DataOrder(Callback):
    """Sets the training loader's epoch, and its position in the epoch when a fit is resumed.

    Lightning restores the loader itself only if nothing asks for the number of steps before it reads the checkpoint, as
    a learning-rate schedule does.

    Args:
        same: Use the order of the first epoch in every epoch (to overfit the same batches).
    """

    def __init__(self, *, same: bool) -> None:
        self.same = same
        self._position: dict[str, int] | None = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the position."""
        checkpoint["data_order"] = _loader(trainer).state_dict()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the position until the loader exists."""
        self._position = checkpoint["data_order"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the position; at the start of an epoch, `on_train_epoch_start` then replaces it."""
        loader = _loader(trainer)
        if self._position is not None:
            loader.load_state_dict(self._position)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the epoch; Lightning does not call this when it resumes inside an epoch."""
        _loader(trainer).set_epoch(0 if self.same else trainer.current_epoch)


def _loader(trainer: L.Trainer) -> ResumableLoader:
    loader = trainer.train_dataloader
    if not isinstance(loader, ResumableLoader):
        raise ValueError(
            f"train_dataloader() returned a {type(loader).__name__}: return a clip_common.training.ResumableLoader"
        )
    return loader
