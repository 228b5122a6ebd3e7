"""Read a pickle of numbers, text, containers and NumPy arrays without calling anything that it names.

A pickle is a program: it names functions, and `pickle.load` imports and calls them. Here each name is looked up in a
table of a few stand-ins, and any other name refuses the file. Arrays are rebuilt from their bytes by this module;
NumPy's own unpickling code does not run either.
"""

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from clip_common.errors import DataError

_NUMBERS = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"))
_DAMAGE = (
    pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError, ImportError,
    OverflowError, MemoryError, RecursionError,
)  # fmt: skip
"""What unpickling raises on files that are cut off, damaged or not pickles."""


class PlainArray:
    """An array of numbers in a pickle; `value` is None until its bytes have been read."""

    value: NDArray[Any] | None = None

    def __init__(self, *of_numpy: object) -> None:  # what NumPy's _reconstruct gets: a class, a shape, a type
        pass

    def __setstate__(self, state: tuple[object, tuple[int, ...], "_PlainType", bool, bytes]) -> None:
        _, shape, kind, fortran, content = state
        self.value = _build(content, kind, shape, order="F" if fortran else "C")


class _PlainType:
    """The type of an array: a number of so many bytes."""

    def __init__(self, name: str, *of_numpy: object) -> None:
        if name not in _NUMBERS:
            raise pickle.UnpicklingError(f"an array of {name!r:.20}, not of numbers")
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("an array of unknown byte order")
        self.order = str(state[1])


def _build(content: object, kind: object, shape: object, *, order: object) -> NDArray[Any]:
    if not (isinstance(content, bytes | bytearray) and isinstance(kind, _PlainType) and isinstance(shape, tuple)):
        raise pickle.UnpicklingError("an array without bytes, type or shape")
    if order not in ("C", "F") or not all(isinstance(length, int) and length >= 0 for length in shape):
        raise pickle.UnpicklingError("an array of unknown shape")
    flat_N = np.frombuffer(content, dtype=np.dtype(kind.order + kind.name))
    if len(flat_N) != math.prod(shape):
        raise pickle.UnpicklingError("an array whose shape and bytes do not agree")
    return flat_N.reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(content: object, kind: object, shape: object, order: object) -> PlainArray:
    array = PlainArray()
    array.value = _build(content, kind, shape, order=order)
    return array


def _scalar(kind: object, content: object) -> object:
    return _build(content, kind, (), order="C").item()


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes of an unknown encoding")
    return text.encode("latin1")


def _make_empty_bytes() -> bytes:
    return b""


def _refuse_call(*given: object) -> NoReturn:
    raise pickle.UnpicklingError("a call that makes no array")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # up to protocol 2
    ("__builtin__", "bytes"): _make_empty_bytes,
    ("_codecs", "encode"): _encode,  # other bytes up to protocol 2
    ("numpy", "dtype"): _PlainType,
    ("numpy", "ndarray"): _refuse_call,  # only named, as an argument of _reconstruct
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")  # before and from NumPy 2
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", PlainArray),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}
"""Module and name → what is used in its place."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return the stand-in for a name; refuse all others before anything is imported."""
        if (module_name, global_name) not in _STAND_INS:
            raise _ForeignNameError(f"{module_name}.{global_name}")
        return _STAND_INS[module_name, global_name]


class _ForeignNameError(pickle.UnpicklingError):
    pass


def read_plain_pickle(file: Path) -> Any:
    """Return the content of a pickle, with a `PlainArray` for each NumPy array and plain numbers for NumPy's.

    Raises:
        DataError: The file cannot be read, is damaged, or holds anything but None, numbers, text, bytes, lists, tuples,
            dicts, sets and arrays of numbers.
    """
    try:
        with file.open("rb") as stream:
            return _PlainUnpickler(stream).load()
    except _ForeignNameError as error:
        raise DataError(
            f"{file}: refused, because it names {error!s:.80}, and reading that would run code: expected a pickle "
            "of numbers, text, containers and NumPy arrays; save tensors by .numpy(), paths as text"
        ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
    except _DAMAGE as error:
        raise DataError(
            f"{file}: not a pickle of plain values, or damaged ({' '.join(str(error).split()):.80})"
        ) from error
