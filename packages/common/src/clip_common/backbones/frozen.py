"""Frozen means frozen: no gradients, eval mode for good, and a fingerprint that says which weights they are."""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import TypeVar

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
