"""Metrics of a set of ranked queries, and of its bootstrap resamples.

One function computes both: a resample is a row of weights (how often each query was drawn); the set itself is a row of
ones.

Shapes: S resamples, Q queries, G groups of queries drawn together (an image with all its captions).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COVERAGE = 0.95
CHUNK = 1 << 22  # weights held at a time: 32 MiB


@dataclass(frozen=True)
class Paired:
    """Difference of two systems on the same set.

    Attributes:
        difference: first minus second, on the whole set.
        low: lower end of its 95 % bootstrap interval.
        high: upper end.
        p: two-sided bootstrap p-value of "no difference"; 1 for a system against itself.
    """

    difference: float
    low: float
    high: float
    p: float


def weighted_metrics(per_query: Mapping[str, Floats], weights_SQ: NDArray[np.int64]) -> dict[str, Floats]:
    """Compute metrics with each query counted `weights_SQ` times: one value for each of the S rows.

    "MedR" and "MeanR" are the median and the mean of the column "rank"; every other metric is the mean of the
    column of its name. The median of an even number of ranks is the mean of the middle two.
    """
    total_S = weights_SQ.sum(1)
    means_SK = weights_SQ @ np.stack(list(per_query.values()), axis=1) / total_S[:, None]
    metrics = dict(zip(per_query, means_SK.T, strict=True))
    order_Q = np.argsort(per_query["rank"])
    rank_Q = per_query["rank"][order_Q]
    until_SQ = weights_SQ[:, order_Q].cumsum(1)
    lower_S = (until_SQ < (total_S[:, None] + 1) // 2).sum(1)
    upper_S = (until_SQ < total_S[:, None] // 2 + 1).sum(1)
    metrics["MedR"] = (rank_Q[lower_S] + rank_Q[upper_S]) / 2
    metrics["MeanR"] = metrics.pop("rank")
    return metrics


def draw_resamples(groups: int, *, samples: int, seed: int, width: int) -> Iterator[NDArray[np.int64]]:
    """Draw G groups with replacement, `samples` times: yields chunks of (S, G) counts.

    The draw depends on the arguments only, so two systems evaluated on the same queries see the same resamples.

    Args:
        groups: number of groups, G.
        samples: number of resamples.
        seed: of the draw.
        width: length of the longest row of weights built from a row of counts; bounds the chunk size.

    Raises:
        ValueError: fewer than one sample.
    """
    if samples < 1:
        raise ValueError(f"a bootstrap needs at least one sample; got {samples}")
    generator = np.random.default_rng(seed)
    at_once = max(1, CHUNK // width)
    for start in range(0, samples, at_once):
        rows = min(at_once, samples - start)
        drawn_SG = generator.integers(groups, size=(rows, groups)) + np.arange(rows)[:, None] * groups
        yield np.bincount(drawn_SG.ravel(), minlength=rows * groups).reshape(rows, groups)


def resample_runs(values_RS: Floats, *, seed: int) -> Floats:
    """Resample runs too: the mean of R runs drawn with replacement, for each of the S resamples of queries.

    R runs drawn from R have (R − 1)/R of the variance between runs, so three runs understate the spread between seeds
    by a factor of √(2/3), ten by √(9/10). A single run is returned unchanged.

    Args:
        values_RS: a metric, or a difference of two systems, of each run on each resample.
        seed: of the draw of runs; independent of that of the queries.
    """
    runs, samples = values_RS.shape
    drawn_SR = np.random.default_rng((seed, 1)).integers(runs, size=(samples, runs))
    return np.take_along_axis(values_RS.T, drawn_SR, axis=1).mean(1)


def paired_difference(observed_R: Sequence[float], difference_RS: Floats, *, seed: int) -> Paired:
    """Compute the mean difference of R runs, its interval and its p-value.

    Args:
        observed_R: first minus second system of each run, on the whole set.
        difference_RS: the same on each of S resamples, shared by both systems.
        seed: of the draw of runs.
    """
    difference_S = resample_runs(difference_RS, seed=seed)
    low, high = percentile_intervals({"difference": difference_S})["difference"]
    smaller_tail = min(np.sum(difference_S <= 0), np.sum(difference_S >= 0))
    p = min(1.0, 2 * (smaller_tail + 1) / (len(difference_S) + 1))
    return Paired(difference=float(np.mean(observed_R)), low=low, high=high, p=float(p))


def percentile_intervals(resampled: Mapping[str, Floats]) -> dict[str, tuple[float, float]]:
    """Return the middle 95 % of each metric's resamples as (low, high)."""
    tail = (1 - COVERAGE) / 2
    bounds = {name: np.quantile(values_S, [tail, 1 - tail]) for name, values_S in resampled.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def concatenate_chunks(chunks: Iterator[dict[str, Floats]]) -> dict[str, Floats]:
    """Concatenate chunks of resampled metrics."""
    parts = list(chunks)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
