"""Frozen means frozen: no gradients, eval mode for good, and names for the weights and for what they yield."""

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
    """Whether nothing in `module` can be trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def fingerprint(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, dtypes and bytes of all weights and buffers that a checkpoint holds.

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
    """sha256 over all that decides what `module` yields: its weights and buffers, its structure and its settings.

    Equal weights do not make equal outputs: an activation, a pooling, a number of heads or a mask has no weight.

    Args:
        module: Of any library. Where it was loaded from does not matter, nor whether it trains.
    """
    buffers = dict(module.named_buffers())  # those that no checkpoint holds, too: a causal mask
    digest = hashlib.sha256(f"{fingerprint(module.state_dict() | buffers)} {module!r}\n".encode())
    for name, part in module.named_modules():
        describe = getattr(getattr(part, "config", None), "to_dict", dict)  # of a model of transformers
        settings = {"config": _settings(describe()), "own": _settings(vars(part))}
        digest.update(f"{name} {json.dumps(settings, sort_keys=True)}\n".encode())
    return digest.hexdigest()


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values, without those that say where and in which state a module is."""
    passing = ("training", "name_or_path", "transformers_version")
    plain = (bool, int, float, str, tuple, type(None))
    return {
        key: repr(value)
        for key, value in values.items()
        if isinstance(value, plain) and key not in passing and not key.startswith("_")
    }
