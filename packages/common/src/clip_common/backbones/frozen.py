"""Freezing a module, and the hashes that identify its weights and its behaviour."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor, nn

from clip_common.backbones.spec import BackboneError

HASHED_WHOLE = 100 * 2**20
"""Most bytes of weights that `fingerprint_files` reads whole."""
SAMPLES, SAMPLE = 16, 4096
"""Samples of a tensor in larger files, and bytes of each."""

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


def fingerprint_files(files: Sequence[Path]) -> str:
    """Return a sha256 over the tensors in the safetensors files of a model, however it is split into files.

    It covers names, dtypes, shapes and values: all bytes if the files have at most `HASHED_WHOLE` bytes together,
    otherwise `SAMPLES` evenly spread samples of `SAMPLE` bytes of each tensor, which differ after any training of that
    tensor. A gigabyte takes a few milliseconds when cached.

    Raises:
        BackboneError: A damaged or truncated file.
    """
    whole = sum(file.stat().st_size for file in files) <= HASHED_WHOLE
    entries = {}
    for file in files:
        with file.open("rb") as stream:
            for name, entry, start, size in _read_header(file, stream):
                digest = hashlib.sha256(f"{name} {entry['dtype']} {entry['shape']}\n".encode())
                for at, length in [(0, size)] if whole or size <= SAMPLES * SAMPLE else spread_samples(size):
                    stream.seek(start + at)
                    digest.update(stream.read(length))
                entries[name] = digest.hexdigest()
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _read_header(file: Path, stream: BinaryIO) -> list[tuple[str, dict[str, Any], int, int]]:
    """Return name, entry, first byte and number of bytes of each tensor in a safetensors file."""
    try:
        length = int.from_bytes(stream.read(8), "little")
        entries = {name: entry for name, entry in json.loads(stream.read(length)).items() if name != "__metadata__"}
        places = [(name, entry, *entry["data_offsets"]) for name, entry in entries.items()]
        if 8 + length + max(end for *_, end in places) != file.stat().st_size:
            raise ValueError("its size is not the one that it states")
    # what is no header may be any JSON, or none
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise BackboneError(f"{file} is damaged: get it again ({type(error).__name__}: {error})") from error
    return [(name, entry, 8 + length + start, end - start) for name, entry, start, end in places]


def spread_samples(size: int) -> list[tuple[int, int]]:
    """Return (first byte, number of bytes) of the samples of a tensor: the first at its start, the last at its end."""
    return [(number * (size - SAMPLE) // (SAMPLES - 1), SAMPLE) for number in range(SAMPLES)]


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
