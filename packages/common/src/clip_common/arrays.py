"""Arrays of numpy and nested lists where tensors are taken."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def as_tensor(values: Tensor | ArrayLike, called: str, *, device: torch.device | None = None) -> Tensor:
    """Return numbers as a tensor; a tensor is returned unchanged, and a list of tensors is stacked with its gradients.

    Args:
        values: A tensor, an array of any numeric or boolean dtype, or nested lists, whose floats become float32.
        called: Name of the argument, for the message.
        device: Of the result, unless `values` is a tensor; None: the CPU.

    Raises:
        ValueError: No numbers, or lists of different lengths.
    """
    if isinstance(values, Tensor):
        return values
    if isinstance(values, list | tuple) and values and all(isinstance(value, Tensor) for value in values):
        try:
            return torch.stack(list(values))
        except RuntimeError as error:
            raise ValueError(f"{called} holds tensors of different shapes: give rows of one width") from error
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{called} holds lists of different lengths: give rows of one width") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{called} holds {array.dtype}: expected numbers; give a tensor, an array or nested lists")
    if array.dtype == np.float64 and not isinstance(values, np.ndarray):
        array = array.astype(np.float32)
    return torch.tensor(np.ascontiguousarray(array), device=device)
