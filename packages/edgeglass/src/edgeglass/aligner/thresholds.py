"""Calibrated thresholds of "nothing here": what `calibrate` stores beside a model, and the statistic that they bound.

Shapes: Q queries, B background vectors, D width.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_common.backbones import fingerprint
from clip_common.index.certificate import wilson_interval
from clip_common.runs.files import write_json
from clip_common.tensors import read_tensors, write_tensors

FILE = "calibration.json"
BACKGROUND = "calibration.safetensors"
NEAREST = 10
"""Background items that a query's level is the mean of."""
WEIGHT = 0.25
"""Share of a query's level that is subtracted from its similarities."""


def measure_level(query_QD: Tensor, background_BD: Tensor | None, *, dim: int) -> Tensor:
    """Return the level (Q,) of queries: an item matches a query if its cosine minus the level is above the threshold.

    The level is 0 without a background: the statistic is then the cosine. With one it is a quarter of the query's mean
    cosine with its ten nearest background items. A query whose best match is hardly nearer than what the background
    has for it then matches less. The background must show what absent queries ask for too, as a training set does;
    drawn from the searched index, it lets fewer present queries through than the cosine alone does. Measures that
    divide by the spread of a query's cosines (z-norm) let far fewer through: an absent query has a small spread too.

    Args:
        query_QD: Queries.
        background_BD: Vectors of items of one modality; None for none.
        dim: Width at which similarities are compared.
    """
    if background_BD is None:
        return torch.zeros(len(query_QD))
    cosine_QB = normalize(query_QD[:, :dim], dim=1) @ normalize(background_BD[:, :dim], dim=1).T
    return WEIGHT * cosine_QB.topk(min(NEAREST, len(background_BD)), dim=1).values.mean(dim=1)


@dataclass(frozen=True)
class Rate:
    """A share of queries with its 95 % interval (Wilson).

    Attributes:
        share: From 0 to 1.
        low, high: The interval.
        queries: Number of queries.
    """

    share: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True)
class Threshold:
    """The threshold of one kind of query in items of one modality at one width.

    Attributes:
        value: An item matches if its cosine minus the query's level is above this.
        false_accept: Share of queries for absent things that found a match, measured on queries that the threshold was
            not fitted on.
        true_accept: Share of queries for present things that found one; None without such queries.
    """

    value: float
    false_accept: Rate
    true_accept: Rate | None


@dataclass(frozen=True)
class Calibration:
    """Thresholds of a model.

    Attributes:
        model: Fingerprint of the model.
        target: Largest share of false accepts that was aimed at.
        items: Modality → number of items that were searched. The best of more items is more similar by chance alone, so
            a much larger collection has more false accepts than measured.
        thresholds: By `name_threshold`.
        background: Modality → vectors (B, D) for `measure_level`; empty if the cosine alone decides.
    """

    model: str
    target: float
    items: Mapping[str, int]
    thresholds: Mapping[str, Threshold]
    background: Mapping[str, Tensor]

    def find_cut(self, query_D: Tensor, *, query: str, modality: str, dim: int) -> float | None:
        """Return the cosine above which an item matches a query; None if there is no threshold for it.

        Args:
            query_D: The query.
            query: Its modality, such as `text` or `image+audio`.
            modality: Modality of the items.
            dim: Width at which they are compared.
        """
        threshold = self.thresholds.get(name_threshold(query, modality, dim))
        if threshold is None:
            return None
        return threshold.value + float(measure_level(query_D[None], self.background.get(modality), dim=dim))


def name_threshold(query: str, modality: str, dim: int) -> str:
    """Return the name of a threshold, such as `text-image@512`."""
    return f"{query}-{modality}@{dim}"


def write_calibration(folder: Path, calibration: Calibration) -> Path:
    """Write thresholds into a model's folder; the former ones stay until the new ones are complete."""
    background = dict(calibration.background)
    write_tensors(folder / BACKGROUND, background)
    content = {
        "model": calibration.model,
        "target": calibration.target,
        "items": dict(calibration.items),
        "background": fingerprint(background),
        "thresholds": {name: asdict(threshold) for name, threshold in calibration.thresholds.items()},
    }
    return write_json(folder / FILE, content)


def read_calibration(folder: Path, *, model: str) -> Calibration | None:
    """Return the thresholds in a model's folder; None if it was not calibrated.

    Args:
        folder: The model's folder.
        model: Fingerprint of the model.

    Raises:
        ValueError: One line: damaged files, or thresholds of another model.
    """
    file = folder / FILE
    if not file.exists():
        return None
    again = "run `edgeglass calibrate` again, or delete it"
    try:
        content = json.loads(file.read_bytes())
        background = read_tensors(folder / BACKGROUND)
        if content["background"] != fingerprint(background):
            raise ValueError(f"its background is not that of {BACKGROUND}")
        found = Calibration(
            model=content["model"],
            target=content["target"],
            items=content["items"],
            thresholds={name: _read_threshold(one) for name, one in content["thresholds"].items()},
            background=background,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({' '.join(str(error).split())}): {again}") from error
    if found.model != model:
        raise ValueError(f"{file} was fitted to another model, or with another embeddings.centre: {again}")
    return found


def _read_threshold(content: dict[str, Any]) -> Threshold:
    true_accept = content["true_accept"]
    return Threshold(
        value=float(content["value"]),
        false_accept=Rate(**content["false_accept"]),
        true_accept=None if true_accept is None else Rate(**true_accept),
    )


def estimate_rate(accepted_N: Tensor) -> Rate:
    """Return the share of true values among bools (N,), with its interval."""
    share = float(accepted_N.double().mean())
    low, high = wilson_interval(share, len(accepted_N))
    return Rate(share, low, high, len(accepted_N))
