"""Checkpoints of trained weights and plain containers, written atomically and read without pickle."""

import errno
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor, nn

from clip_common.runs.files import write_atomically

BEST = "best.ckpt"
LAST = "last.ckpt"
HYPER_PARAMETERS = ("hyper_parameters", "hparams_name", "datamodule_hyper_parameters", "datamodule_hparams_name")
"""Keys of `save_hyperparameters` in Lightning's checkpoints; they hold objects. config.yaml has them as text."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: missing, truncated, or of another architecture."""


class TrainedWeightsIO(CheckpointIO):
    """Writes and reads the Trainer's checkpoints of `module`.

    Frozen parameters are not saved: they are loaded from their original source. `best.ckpt` holds weights only,
    `last.ckpt` everything needed to resume.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write `checkpoint` atomically; a full disk raises OSError and leaves the previous file."""
        frozen = {name for name, parameter in parameters_by_name(self.module).items() if not parameter.requires_grad}
        weights = {name: value for name, value in checkpoint["state_dict"].items() if name not in frozen}
        kept = ("epoch", "global_step", "pytorch-lightning_version") if Path(path).name == BEST else checkpoint
        content = {key: checkpoint[key] for key in kept if key not in HYPER_PARAMETERS} | {"state_dict": weights}
        with write_atomically(Path(path)) as temporary:
            try:
                torch.save(content, temporary)
            except RuntimeError as error:  # torch's writer hides the system's error
                raise OSError(errno.ENOSPC, "checkpoint could not be written, is the disk full?", str(path)) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint and check that its weights fit the module."""
        checkpoint = read_checkpoint(path)
        check_weights(self.module, checkpoint["state_dict"], source=path)
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def load_weights(module: nn.Module, path: str | Path) -> None:
    """Load a checkpoint's weights into `module`; the file must hold exactly its trainable parameters.

    Raises:
        CheckpointError: Missing or truncated file; missing, unexpected or differently shaped weights.
    """
    weights = read_checkpoint(path)["state_dict"]
    check_weights(module, weights, source=path)
    module.load_state_dict(weights, strict=False)


def read_checkpoint(path: str | Path, *, key: str = "state_dict") -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU, without executing any pickle.

    Args:
        path: A file that `torch.save` wrote.
        key: An entry that the checkpoint must have; checkpoints of other programs use other keys.

    Raises:
        CheckpointError: Missing, truncated, or not a checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: truncated, or not a checkpoint of weights and plain containers") from error
    if not isinstance(content, dict) or key not in content:
        raise CheckpointError(f"{path}: not a checkpoint: it has no {key}")
    return content


def check_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Raise CheckpointError unless `weights` are exactly the module's trainable parameters, plus any of its buffers."""
    parameters = parameters_by_name(module)
    trainable = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    buffers = module.state_dict().keys() - parameters.keys()
    problems = {
        "lacks": sorted(trainable.keys() - weights.keys()),
        "also has": sorted(weights.keys() - trainable.keys() - buffers),
        "has another shape of": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(parameter.shape)}"
            for name, parameter in trainable.items()
            if name in weights and weights[name].shape != parameter.shape
        ],
    }
    found = [f"{what} {_some(names)}" for what, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{source} is of another architecture than the model: it {'; it '.join(found)}")


def parameters_by_name(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return name → parameter by names of the state dict, without the parts that FSDP and torch.compile insert."""
    named = module.named_parameters(remove_duplicate=False)
    return {name.replace("_fsdp_wrapped_module.", "").replace("_orig_mod.", ""): value for name, value in named}


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
