"""First passes of a search: short codes of all rows, which stay in memory and give each row's cosine to a query.

A first pass compares the first d numbers of each vector, all D of them or a prefix, by one of three codes:

- `float32`: the prefixes at unit length, 4 d bytes each;
- `int8`: whole numbers from −127 to 127 times one scale of the vector, d + 4 bytes each. (With one scale for each
  dimension, the many small dimensions of a nested embedding would count as much as the few large ones.)
- `binary`: the signs of d numbers after a random rotation, d / 8 bytes each, for d a power of two; the share of
  different signs estimates the angle (Charikar 2002, section 3). The rotation gives all signs equal weight even if most
  of the variance is in the first dimensions; it takes two products with a Hadamard matrix (Ailon and Chazelle 2009).

N rows in several segments, S those of a tile, T queries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from clip_common.index.exact import SHORTEST
from clip_common.index.segments import Segment

First = Literal["float32", "int8", "binary"]
FIRST: tuple[First, ...] = get_args(First)
TILE_NUMBERS = 2**19
"""Numbers of a tile that are held as float32: 2 MiB."""
LEVELS = 127
WORD = 64
"""Signs in a word."""


class FirstPass(Protocol):
    """Codes of N rows."""

    def compare(self, query_Td: Tensor, score_TN: Tensor) -> None:
        """Write scores, which order the rows of each query as their estimated cosines do, into `score_TN`."""


@dataclass(frozen=True)
class FloatPass:
    """Prefixes at unit length."""

    unit_Nd: Tensor

    def compare(self, query_Td: Tensor, score_TN: Tensor) -> None:
        """Write the cosine of each row."""
        _multiply(query_Td, self.unit_Nd, score_TN)


@dataclass(frozen=True)
class BytePass:
    """Prefixes at unit length: int8 codes, and the scale of each vector."""

    code_Nd: Tensor
    scale_N: Tensor

    def compare(self, query_Td: Tensor, score_TN: Tensor) -> None:
        """Write the cosine of each row's code; one tile at a time is held as float32."""
        rows = _tile_rows(self.code_Nd.shape[1])
        number_Sd = torch.empty(min(rows, len(self.code_Nd)), self.code_Nd.shape[1])
        for start, code_Sd in zip(range(0, len(self.code_Nd), rows), self.code_Nd.split(rows), strict=True):
            tile_Sd = number_Sd[: len(code_Sd)].copy_(code_Sd)
            _multiply(query_Td, tile_Sd, score_TN[:, start : start + len(code_Sd)])
        score_TN *= self.scale_N


@dataclass(frozen=True)
class SignPass:
    """Signs after a rotation, 64 in a word; `word_WN` has a contiguous row for each word."""

    word_WN: NDArray[np.uint64]
    rotation: "Rotation"

    def compare(self, query_Td: Tensor, score_TN: Tensor) -> None:
        """Write the number of different signs (the Hamming distance), negated."""
        different_N = np.empty(self.word_WN.shape[1], dtype=np.uint16)
        for query_W, score_N in zip(self.rotation.pack_signs(query_Td), score_TN.numpy(), strict=True):
            different_N.fill(0)
            for word, word_N in zip(query_W, self.word_WN, strict=True):
                different_N += np.bitwise_count(word_N ^ word)
            np.negative(different_N, out=score_N, dtype=np.float32)


class Rotation:
    """A random rotation of d numbers, padded with zeros to a power of two: twice random signs and a Hadamard matrix.

    The Hadamard matrix is a Kronecker product of two small ones, so that it takes two small matrix products.
    """

    def __init__(self, dim: int) -> None:
        self.width = max(WORD, 1 << (dim - 1).bit_length())
        half = 1 << (self.width.bit_length() - 1) // 2
        self.left, self.right = _hadamard(half), _hadamard(self.width // half)
        generator = torch.Generator().manual_seed(0)  # any fixed seed: rows and queries need the same rotation
        self.signs_2d = torch.randint(0, 2, (2, self.width), generator=generator) * 2.0 - 1

    def rotate(self, x_Sd: Tensor) -> Tensor:
        """Return rotated vectors, (S, width), scaled by `width`."""
        x_Sd = functional.pad(x_Sd, (0, self.width - x_Sd.shape[1]))
        for sign_d in self.signs_2d:
            x_Sd = (self.left @ (x_Sd * sign_d).view(-1, len(self.left), len(self.right)) @ self.right).flatten(1)
        return x_Sd

    def pack_signs(self, x_Sd: Tensor) -> NDArray[np.uint64]:
        """Return the signs of rotated vectors, (S, width / 64); a set bit is a positive number."""
        return np.packbits((self.rotate(x_Sd) > 0).numpy(), axis=1).view(np.uint64)


def build_first_pass(segments: Sequence[Segment], *, first: First, dim: int) -> FirstPass:
    """Encode the first `dim` numbers of all rows, one tile of a stored segment in memory at a time."""
    count = sum(map(len, segments))
    if first == "float32":
        unit_Nd = torch.empty(count, dim)
        for start, tile_Sd in _unit_tiles(segments, dim):
            unit_Nd[start : start + len(tile_Sd)] = tile_Sd
        return FloatPass(unit_Nd)
    if first == "int8":
        code_Nd, scale_N = torch.empty(count, dim, dtype=torch.int8), torch.empty(count)
        for start, tile_Sd in _unit_tiles(segments, dim):
            scale_S = tile_Sd.abs().amax(dim=1) / LEVELS
            scale_N[start : start + len(tile_Sd)] = scale_S
            code_Nd[start : start + len(tile_Sd)] = (tile_Sd / scale_S.clamp_min(SHORTEST)[:, None]).round_()
        return BytePass(code_Nd, scale_N)
    rotation = Rotation(dim)
    word_WN = np.empty((rotation.width // WORD, count), dtype=np.uint64)
    for start, tile_Sd in _unit_tiles(segments, dim):
        word_WN[:, start : start + len(tile_Sd)] = rotation.pack_signs(tile_Sd).T
    return SignPass(word_WN, rotation)


def _unit_tiles(segments: Sequence[Segment], dim: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of the first row of each tile, and the prefixes of its rows at unit length."""
    before = 0
    for segment in segments:
        for start, tile_Sd in segment.walk(_tile_rows(segment.vectors_SD.shape[1]), dim=dim):
            yield before + start, functional.normalize(tile_Sd, dim=1)
        before += len(segment)


def _tile_rows(width: int) -> int:
    return max(1, TILE_NUMBERS // width)


def _multiply(query_Td: Tensor, row_Sd: Tensor, score_TS: Tensor) -> None:
    if len(query_Td) == 1:  # bound by memory bandwidth; a matrix product takes longer
        torch.mv(row_Sd, query_Td[0], out=score_TS[0])
    else:
        torch.mm(query_Td, row_Sd.T, out=score_TS)


def _hadamard(size: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix
