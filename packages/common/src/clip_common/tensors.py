"""Tensors by name in safetensors files and in checkpoints of torch; no pickle and no archived code is executed.

Needs the package `safetensors` (`clip-common[clip]`) when first called. Files are written whole or not at all and read
through the page cache: a tensor costs memory when its values are first used.
"""

import errno
import json
import os
import re
import warnings
import weakref
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clip_common.runs.files import write_atomically

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the weights in their checkpoints."""
PREFIXES = ("module.", "model.", "_orig_mod.")
"""Prefixes of all names of a model inside DistributedDataParallel, a LightningModule or torch.compile."""


class TensorsError(ValueError):
    """A file of tensors that cannot be used: one line that says which, why, and what to do."""


class RowFile:
    """The rows of a float32 matrix in a safetensors file, each read when asked for, even if the file was removed.

    A mapped row may bring megabytes around it into the memory of the process; these reads bring nothing.

    Args:
        file: What `write_tensors`, or another program, wrote.
        name: The matrix.

    Raises:
        TensorsError: Absent, damaged, truncated, of another format, or without a float32 matrix of that name.
    """

    def __init__(self, file: Path, name: str) -> None:
        with _open(file) as stored:  # compares the header with the size of the file
            if name not in stored.keys() or stored.get_slice(name).get_dtype() != "F32":  # noqa: SIM118
                raise TensorsError(f"{file} has no float32 matrix {name!r}: get it again, or delete it")
            self._descriptor = os.open(file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        header = 8 + int.from_bytes(os.pread(self._descriptor, 8, 0), "little")  # its length, itself, then all values
        place = json.loads(os.pread(self._descriptor, header - 8, 8))[name]
        self._start, self._row_bytes = header + place["data_offsets"][0], 4 * place["shape"][-1]

    def read(self, rows: Sequence[int], out_KD: NDArray[np.float32]) -> None:
        """Copy rows into a matrix of as many rows."""
        for row, out_D in zip(rows, out_KD, strict=True):
            os.preadv(self._descriptor, [out_D.data], self._start + row * self._row_bytes)

    def read_range(self, start: int, out_SD: NDArray[np.float32]) -> None:
        """Copy the rows from `start` on into a matrix."""
        os.preadv(self._descriptor, [out_SD.data], self._start + start * self._row_bytes)


def write_tensors(file: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file, atomically; a former one stays until the new one is complete.

    Args:
        file: Its folder is made if missing.
        tensors: By name; on any device, of any strides. No two may share memory.
        metadata: Text for the file's header, which `read_metadata` returns.

    Raises:
        OSError: A full disk, or a folder that cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with write_atomically(file) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(contiguous, temporary, {"format": "pt"} | dict(metadata or {}))
        except SafetensorError as error:  # what safetensors makes of an error of the system
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, os.strerror(code), str(file)) from error
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
    return file


def read_tensors(file: Path, *, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU.

    Args:
        file: What `write_tensors`, or another program, wrote.
        without: Prefixes of names to leave out; their values are not read.

    Raises:
        TensorsError: Absent, damaged, truncated, or of another format.
    """
    with _open(file) as stored:
        return _tensors(stored, without)


def read_tensor(file: Path, name: str) -> Tensor:
    """Return one tensor of a safetensors file, on the CPU, without reading the others.

    Raises:
        TensorsError: Absent, damaged, truncated, of another format, or without a tensor of that name.
    """
    with _open(file) as stored:
        tensor: Tensor = stored.get_tensor(name)
        return tensor


def read_metadata(file: Path) -> dict[str, str]:
    """Return the text in the header of a safetensors file; empty if it has none.

    Raises:
        TensorsError: Absent, damaged, truncated, or of another format.
    """
    with _open(file) as stored:
        return dict(stored.metadata() or {})


def read_checkpoint(file: Path, *, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Return the weights in a .safetensors file, or in one that `torch.save` or `torch.jit.save` wrote, on the CPU.

    No code in the file runs: of what `torch.save` wrote, only tensors and plain values are read (`weights_only`); a
    TorchScript archive, as OpenAI published CLIP, is refused if loading it would run a method of its own. A dict around
    the weights (under one of `WRAPPERS`) and those of `PREFIXES` that all names have are removed; values that are not
    tensors are left out.

    Args:
        file: A file of this project or of any other.
        without: Prefixes of names to leave out; a .safetensors file's are not even read.

    Raises:
        TensorsError: Absent, truncated, not a file of weights, or a TorchScript archive that must run to be read.
    """
    _check_is_file(file)
    try:
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(file, framework="pt") as stored:
                content: Any = _tensors(stored, without)
        elif _is_torchscript(file):
            content = _read_torchscript(file)
        else:
            content = torch.load(file, "cpu", weights_only=True)
    except TensorsError:
        raise
    # what torch raises for a damaged file ranges from KeyError to UnpicklingError
    except Exception as error:
        if module := re.search(r"Unsupported global: GLOBAL (\S+)", str(error)):
            raise TensorsError(
                f"{file} holds an object of {module[1]}, whose code is not run: save the weights alone where you trust "
                "it, with torch.save(model.state_dict(), NEW)"
            ) from error
        raise TensorsError(
            f"{file} cannot be read as weights, it is truncated or of another format: get it again ({_reason(error)})"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(value, Tensor) for value in content.values()):
        raise TensorsError(f"{file} holds no weights: expected tensors by name, or a dict of them in {WRAPPERS[0]!r}")
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not name.startswith(without)}


def read_code(file: Path) -> str:
    """Return the TorchScript code in an archive of `torch.jit.save`; empty for any other file. None of it is run."""
    if not _is_torchscript(file):
        return ""
    with zipfile.ZipFile(file) as archive:
        return "\n".join(archive.read(name).decode("utf-8", "replace") for name in archive.namelist() if _is_code(name))


def _is_torchscript(file: Path) -> bool:
    """Return whether a file is an archive of `torch.jit.save`, which holds code beside its tensors."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(_is_code(name) for name in archive.namelist())


def _is_code(name: str) -> bool:
    return "/code/" in name and name.endswith(".py")


def _read_torchscript(file: Path) -> dict[str, Tensor]:
    """Return the parameters and buffers in a TorchScript archive.

    Python code in it is never run by torch. Its TorchScript would be run at loading only for `__setstate__`.
    """
    with zipfile.ZipFile(file) as archive:
        if any(b"__setstate__" in archive.read(name) for name in archive.namelist() if _is_code(name)):
            raise TensorsError(
                f"{file} is a TorchScript archive that runs code when it is loaded: convert it where you trust it, "
                "with torch.save(torch.jit.load(FILE).state_dict(), NEW)"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, for programs that run archives
        state: dict[str, Tensor] = torch.jit.load(file, map_location="cpu").state_dict()
    return {name: tensor.detach() for name, tensor in state.items()}


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, source: object, called: str) -> None:
    """Fill all parameters and buffers of `module` from tensors of exactly its names and shapes.

    Args:
        module: Filled in place; unchanged by an error.
        state: Tensors by name.
        source: Where they came from, for the message.
        called: What the module is called in the message.

    Raises:
        TensorsError: Tensors of another model.
    """
    check_fit(module.state_dict(), state, source=source, called=called)
    module.load_state_dict(dict(state))


def check_fit(own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, source: object, called: str) -> None:
    """Raise TensorsError unless `given` has exactly the names and shapes of `own`.

    Args:
        own: What the model takes.
        given: What was read.
        source: Where `given` came from, for the message.
        called: What the model is called in the message.
    """
    missing, foreign = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    shapes = [name for name in sorted(own.keys() & given.keys()) if own[name].shape != given[name].shape]
    wrong = [
        f"{len(names)} {what}, such as {names[0]}"
        for what, names in (("missing", missing), ("foreign", foreign), ("of another shape", shapes))
        if names
    ]
    if shapes:
        wrong[-1] += f" with {tuple(given[shapes[0]].shape)} instead of {tuple(own[shapes[0]].shape)}"
    if wrong:
        raise TensorsError(
            f"{source} does not fit {called}: its tensors are of another model ({'; '.join(wrong)}): give the weights "
            f"of {called}, or name the model that they were saved from"
        )


def check_fingerprint(actual: str, expected: str, *, source: object, what: str) -> None:
    """Raise TensorsError unless the model here is the one that `source` was made with.

    Args:
        actual: Fingerprint of the model here.
        expected: Fingerprint that `source` recorded.
        source: A file or folder made with a model, for the message.
        what: The part of the model that has the fingerprints, such as "the image tower of ViT-B-32".
    """
    if actual != expected:
        raise TensorsError(
            f"{source} is of another model: it was made with {what} of fingerprint {expected[:12]}…, but the one here "
            f"has {actual[:12]}…: load the one it was made with, or make {source} again"
        )


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    _check_is_file(file)
    try:
        with safe_open(file, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as error:
        raise TensorsError(
            f"{file} is damaged or cannot be read as tensors ({_reason(error)}): get it again, or delete it"
        ) from error


def _tensors(stored: Any, without: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: stored.get_tensor(name) for name in stored.keys() if not name.startswith(without)}  # noqa: SIM118


def _check_is_file(file: Path) -> None:
    if not file.is_file():
        raise TensorsError(f"{file}: no such file of weights: check the path, or make the file again")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
