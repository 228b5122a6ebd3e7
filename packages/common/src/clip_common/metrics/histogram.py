"""Histogram of the scores of two classes in constant memory, from which threshold curves are computed.

The bits of a float32, read as an integer, grow with the float once negative ones are mirrored. The top bits of that
integer are bins that need no range in advance and scale with the scores: with 20 bits a bin is between 2^-12 and 2^-11
of its scores' magnitude. Histograms of parts add up to that of the whole, so parts may come from other processes.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Mass = NDArray[np.float64]

CHUNK = 1 << 18  # scores at a time: their temporaries stay in cache
LOWEST = 0x007FFFFF  # the key of -inf


class ScoreHistogram:
    """Mass of the negatives (label 0) and of the positives (label 1) over score.

    Args:
        bits: leading bits of a score that make its bin. Memory 16 · 2^bits bytes: 16 MiB at 20.
        exact: keep all scores distinct instead; memory then grows with them.
    """

    def __init__(self, *, bits: int = 20, exact: bool = False) -> None:
        if not 10 <= bits <= 24:
            raise ValueError(f"bits must be from 10 to 24; got {bits}: use exact=True to tell all scores apart")
        self.bits = 32 if exact else bits
        self.exact = exact
        self._mass_B2 = np.zeros(0 if exact else 2 << bits)  # (bin, label), flat
        self._kept: list[tuple[Indices, Mass]] = []  # used instead if `exact`

    def add(self, scores_N: NDArray[np.float32], labels_N: NDArray[Any], weights_N: NDArray[Any] | None = None) -> None:
        """Add scores (no NaN) with labels 0 and 1, each with mass 1 or its weight."""
        for start in range(0, len(scores_N), CHUNK):
            part = slice(start, start + CHUNK)
            index_n = (_keys(scores_N[part]) >> (32 - self.bits)).astype(np.int64)
            index_n *= 2
            index_n += labels_N[part]
            weights_n = None if weights_N is None else weights_N[part]
            if self.exact:
                mass_n = np.ones(len(index_n)) if weights_n is None else weights_n.astype(np.float64)
                self._kept.append((index_n, mass_n))
            else:
                lowest = int(index_n.min())
                index_n -= lowest
                mass = np.bincount(index_n, weights=weights_n)
                self._mass_B2[lowest : lowest + len(mass)] += mass

    def merge(self, other: "ScoreHistogram") -> None:
        """Add another histogram."""
        if self.bits != other.bits:
            raise ValueError(f"only histograms of the same resolution add up; got {self.bits} and {other.bits} bits")
        self._mass_B2 += other._mass_B2
        self._kept += other._kept

    def descending(self) -> tuple[NDArray[np.float32], Mass, Mass]:
        """Return, from the highest score down, each occupied bin's lowest score, negatives and positives."""
        if self.exact:
            index_N = np.concatenate([index for index, _ in self._kept] or [np.zeros(0, np.int64)])
            mass_N = np.concatenate([mass for _, mass in self._kept] or [np.zeros(0)])
            keys_K, place_N = np.unique(index_N >> 1, return_inverse=True)
            mass_K2 = np.zeros((len(keys_K), 2))
            np.add.at(mass_K2, (place_N, index_N & 1), mass_N)
        else:
            mass_B2 = self._mass_B2.reshape(-1, 2)
            bins_K = np.flatnonzero(mass_B2[:, 0] + mass_B2[:, 1])
            keys_K, mass_K2 = bins_K << (32 - self.bits), mass_B2[bins_K]
        return _scores(keys_K)[::-1], mass_K2[::-1, 0], mass_K2[::-1, 1]


def as_scores(scores: Tensor | ArrayLike) -> NDArray[np.float32]:
    """Convert scores of any kind to a float32 array of the same shape.

    Raises:
        ValueError: a score is NaN.
    """
    scores = scores.detach().float().cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores, np.float32)
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
