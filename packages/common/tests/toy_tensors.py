"""A writer of tensors that other processes import by name."""

from pathlib import Path

import torch

from clip_common.tensors import write_tensors


def write_many(file: Path, value: int) -> None:
    """Write a file twenty times, each time the same tensor."""
    for _ in range(20):
        write_tensors(file, {"value": torch.full((2000,), value)})
