"""Freezing a module, and the hashes that identify its weights and its behaviour."""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def freeze(module: Module) -> Module:
    """Take gradients off `module` and keep it in eval mode even when the module around it is put into training mode."""
    module.requires_grad_(False).eval()
    # a partial, not a bound method: it survives deepcopy and pickle
    module.train = partial(_stay_in_eval, module)  # type: ignore[assignment,method-assign]
    return module


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def is_frozen(module: nn.Module) -> bool:
    """Return whether `module` has no parameter that trains."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def fingerprint(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes, dtypes and bytes of all weights and buffers that a checkpoint holds.

    Args:
        weights: A module, or its state dict. Order and device do not matter.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def behaviour(module: nn.Module) -> str:
    """Return the sha256 of everything that decides the output of `module`: weights, buffers, structure and settings.

    Equal weights can give different outputs: an activation, a pooling, a number of heads or a mask has no weight.

    Args:
        module: Of any library. The place it was loaded from and its training mode do not matter.
    """
    buffers = dict(module.named_buffers())  # also those that no checkpoint holds, such as a causal mask
    digest = hashlib.sha256(f"{fingerprint(module.state_dict() | buffers)} {module!r}\n".encode())
    for name, part in module.named_modules():
        describe = getattr(getattr(part, "config", None), "to_dict", dict)  # models of transformers have one
        settings = {"config": _settings(describe()), "own": _settings(vars(part))}
        digest.update(f"{name} {json.dumps(settings, sort_keys=True)}\n".encode())
    return digest.hexdigest()


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values, without those that describe the module's place or state."""
    passing = ("training", "name_or_path", "transformers_version")
    plain = (bool, int, float, str, tuple, type(None))
    return {
        key: repr(value)
        for key, value in values.items()
        if isinstance(value, plain) and key not in passing and not key.startswith("_")
    }
