"""Histogram of the scores of two classes in constant memory, from which threshold curves are computed.

The bits of a float32, read as an integer, grow with the float once negative ones are mirrored. The top bits of that
integer are bins that need no range in advance and scale with the scores: with 20 bits a bin is between 2^-12 and 2^-11
of its scores' magnitude. Histograms of parts add up to that of the whole, so parts may come from other processes.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Scores = NDArray[np.float32] | NDArray[np.float64]
Mass = NDArray[np.float64]

CHUNK = 1 << 18  # scores at a time: their temporaries stay in cache
LOWEST = 0x007FFFFF  # the key of -inf


class Bins(NamedTuple):
    """Occupied bins, from the highest score down; scores in one bin count as tied.

    Attributes:
        lowest_K: lowest score of each bin: float32, or float64 if `exact` and such scores were added.
        negatives_K, positives_K: mass of each class.
        mixed_K: bins that hold scores which differ; never if `exact`.
    """

    lowest_K: NDArray[np.floating[Any]]
    negatives_K: Mass
    positives_K: Mass
    mixed_K: NDArray[np.bool_]


class ScoreHistogram:
    """Mass of the negatives (label 0) and of the positives (label 1) over score.

    Args:
        bits: leading bits of a score that make its bin. Memory 25 · 2^bits bytes: 25 MiB at 20.
        exact: keep all scores distinct instead, float64 too; memory then grows with them.
    """

    def __init__(self, *, bits: int = 20, exact: bool = False) -> None:
        if not 10 <= bits <= 24:
            raise ValueError(f"bits must be from 10 to 24; got {bits}: use exact=True to tell all scores apart")
        self.bits = 32 if exact else bits
        self.exact = exact
        self._mass_B2 = np.zeros(0 if exact else 2 << bits)  # (bin, label), flat
        self._first_B = np.zeros(0 if exact else 1 << bits)  # a score of each bin that has mass
        self._mixed_B = np.zeros(0 if exact else 1 << bits, dtype=bool)  # whether others differ from it
        self._kept: list[tuple[Scores, NDArray[Any], Mass]] = []  # used instead if `exact`

    def add(self, scores_N: Scores, labels_N: NDArray[Any], weights_N: NDArray[Any] | None = None) -> None:
        """Add float32 or float64 scores (no NaN) with labels 0 and 1, each with mass 1 or its weight."""
        if self.exact:
            mass_N = np.ones(len(scores_N)) if weights_N is None else weights_N.astype(np.float64)
            self._kept.append((scores_N.copy(), labels_N.copy(), mass_N))
            return
        for start in range(0, len(scores_N), CHUNK):
            part = slice(start, start + CHUNK)
            index_n = (_keys(scores_N[part].astype(np.float32)) >> (32 - self.bits)).astype(np.int64)
            self._compare(index_n, scores_N[part])
            index_n *= 2
            index_n += labels_N[part]
            lowest = int(index_n.min())
            index_n -= lowest
            mass = np.bincount(index_n, weights=None if weights_N is None else weights_N[part])
            self._mass_B2[lowest : lowest + len(mass)] += mass

    def _compare(self, bin_N: Indices, scores_N: Scores) -> None:
        """Find bins whose scores differ; bins found before, which are most after a few images, are not read again."""
        open_n = np.flatnonzero(~self._mixed_B[bin_N])
        bin_n, score_n = bin_N[open_n], scores_N[open_n]
        empty_n = self._mass_B2.reshape(-1, 2)[bin_n].sum(1) == 0
        self._first_B[bin_n[empty_n]] = score_n[empty_n]
        self._mixed_B[bin_n[self._first_B[bin_n] != score_n]] = True

    def merge(self, other: "ScoreHistogram") -> None:
        """Add another histogram."""
        if self.bits != other.bits:
            raise ValueError(f"only histograms of the same resolution add up; got {self.bits} and {other.bits} bits")
        here_B, there_B = (one._mass_B2.reshape(-1, 2).any(1) for one in (self, other))
        self._mixed_B |= other._mixed_B | (here_B & there_B & (self._first_B != other._first_B))
        self._first_B = np.where(here_B, self._first_B, other._first_B)
        self._mass_B2 += other._mass_B2
        self._kept += other._kept

    def descending(self) -> Bins:
        """Return the occupied bins from the highest score down."""
        if self.exact:
            score_N, label_N, mass_N = (
                np.concatenate([part[field] for part in self._kept] or [np.zeros(0, dtype=np.int64)])
                for field in range(3)
            )
            lowest_K, place_N = np.unique(score_N, return_inverse=True)
            mass_K2 = np.zeros((len(lowest_K), 2))
            np.add.at(mass_K2, (place_N, label_N.astype(np.int64)), mass_N)
            mixed_K = np.zeros(len(lowest_K), dtype=bool)
        else:
            mass_B2 = self._mass_B2.reshape(-1, 2)
            bins_K = np.flatnonzero(mass_B2[:, 0] + mass_B2[:, 1])
            lowest_K, mass_K2, mixed_K = _scores(bins_K << (32 - self.bits)), mass_B2[bins_K], self._mixed_B[bins_K]
        return Bins(lowest_K[::-1], mass_K2[::-1, 0], mass_K2[::-1, 1], mixed_K[::-1])


def as_scores(scores: Tensor | ArrayLike) -> NDArray[np.float32]:
    """Convert scores of any kind to a float32 array of the same shape.

    Raises:
        ValueError: a score is NaN.
    """
    return as_floats(scores).astype(np.float32, copy=False)


def as_floats(scores: Tensor | ArrayLike) -> Scores:
    """Convert scores of any kind to an array of the same shape: float64 stays, and whole numbers become it.

    Raises:
        ValueError: a score is NaN.
    """
    if isinstance(scores, Tensor):
        scores = scores.detach()
        scores = (scores if scores.dtype == torch.float64 else scores.float()).cpu().numpy()
    scores = np.asarray(scores)
    scores = scores.astype(np.float32 if scores.dtype in (np.float16, np.float32) else np.float64, copy=False)
    if scores.size and np.isnan(scores.min()):  # the minimum is NaN if anything is
        raise ValueError(f"scores must not be NaN; got {int(np.isnan(scores).sum())} NaN among {scores.size}")
    return scores


def as_labels(labels: Tensor | ArrayLike, *, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Convert labels 0 and 1 (or booleans) of any kind to a boolean array.

    Raises:
        ValueError: another shape than the scores', or other values.
    """
    labels = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if labels.shape != shape:
        raise ValueError(f"labels must have the shape of the scores, {shape}; got {labels.shape}")
    flags = labels.astype(bool, copy=False)
    if flags is not labels and not np.array_equal(flags, labels):
        raise ValueError(f"labels must be 0 or 1; got {labels[flags != labels].flat[0]}")
    return flags


def _keys(scores_N: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Map scores to integers 0 … 2^32-1 in the same order; equal scores map alike (adding 0 turns -0.0 into 0.0)."""
    bits_N = (scores_N + np.float32(0)).view(np.int32)
    return (bits_N ^ ((bits_N >> 31) | np.int32(-(2**31)))).view(np.uint32)


def _scores(keys_N: NDArray[np.int64]) -> NDArray[np.float32]:
    """Map keys back to scores. Keys below that of -inf, which no score has, give -inf."""
    keys_N = np.maximum(keys_N, LOWEST)
    return np.where(keys_N >> 31, keys_N ^ 2**31, keys_N ^ 0xFFFFFFFF).astype(np.uint32).view(np.float32)
