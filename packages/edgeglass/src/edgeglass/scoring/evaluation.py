"""Embeddings of a split to numbers: retrieval by width and pair, the modality gap, shares of a mixed gallery. No files.

Shapes: R rows of a modality, D shared width, Q queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_common.metrics import RetrievalResult, retrieval_metrics
from edgeglass.scoring.embedding import EmbeddedSplit

LETTERS = {"image": "i", "text": "t", "audio": "a"}
TOP = 10
"""Places of a mixed gallery whose modalities are counted."""


@dataclass(frozen=True)
class Direction:
    """Retrieval from one modality to another, at one width.

    Attributes:
        query: Modality of the queries, or `image+audio` for queries of several.
        gallery: Modality that is searched.
        width: Width of the embeddings.
        result: Recall, ranks and their intervals.
        chance: R@1 of a random ranking.
        ceiling: R@1 of the best possible reader, where it is known.
    """

    query: str
    gallery: str
    width: int
    result: RetrievalResult
    chance: float
    ceiling: float | None = None

    @property
    def name(self) -> str:
        """Short name, such as `i2t` or `ia2t`."""
        return name_direction(self.query, self.gallery)


@dataclass(frozen=True)
class MixedGallery:
    """Top places of a gallery of all modalities, as many items of each.

    Attributes:
        shares: Modality of the query → modality → its mean share of the top ten.
        truth: Modality → its share of the gallery.
    """

    shares: dict[str, dict[str, float]]
    truth: dict[str, float]

    @property
    def overall(self) -> dict[str, float]:
        """Mean share of each modality over the queries of all modalities."""
        return {name: sum(row[name] for row in self.shares.values()) / len(self.shares) for name in self.truth}


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on one split.

    Attributes:
        directions: At every width, both ways of every pair, and fused queries.
        gaps: Pair of modalities → distance of their mean unit embeddings, 0 to 2, at full width.
        mixed: Shares of a mixed gallery; None if fewer than two modalities have ten items.
        samples: Number of samples.
        items: Number of items by modality.
    """

    directions: list[Direction]
    gaps: dict[str, float]
    mixed: MixedGallery | None
    samples: int
    items: dict[str, int]

    @property
    def full(self) -> list[Direction]:
        """Directions at full width."""
        width = max(direction.width for direction in self.directions)
        return [direction for direction in self.directions if direction.width == width]

    @property
    def metrics(self) -> dict[str, float]:
        """`i2t/R@1`, … at full width, and R@1, their mean over both ways of all pairs of modalities."""
        found = {
            f"{direction.name}/{key}": value
            for direction in self.full
            for key, value in direction.result.metrics.items()
        }
        plain = [way.result.metrics["R@1"] for way in self.full if "+" not in way.query]
        return found | {"R@1": sum(plain) / len(plain)}

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values, as result.json holds them."""
        return {
            "metrics": self.metrics,
            "widths": {
                name: {
                    str(way.width): way.result.metrics | {"chance": way.chance, "ceiling": way.ceiling}
                    for way in self.directions
                    if way.name == name
                }
                for name in dict.fromkeys(way.name for way in self.directions)
            },
            "gap": self.gaps,
            "mixed_gallery": None
            if self.mixed is None
            else {"shares": self.mixed.shares, "overall": self.mixed.overall, "truth": self.mixed.truth},
            "samples": self.samples,
            "items": self.items,
        }


def evaluate(
    split: EmbeddedSplit,
    *,
    pairs: Sequence[tuple[str, str]],
    widths: Sequence[int],
    ceilings: Mapping[str, float],
    samples: int,
    target: str = "text",
) -> Evaluation:
    """Compute the metrics of an embedded split.

    A hit of a query is any item that shares a sample with it; equal captions are one item.

    Args:
        split: Unit embeddings.
        pairs: Pairs of modalities to score both ways; one that the split lacks is left out.
        widths: Prefix widths to score.
        ceilings: R@1 of the best possible reader, by the name of the direction (`i2t`).
        samples: Number of samples, for the record.
        target: Gallery of queries of several modalities.

    Raises:
        ValueError: The split holds no pair.
    """
    ways = [way for pair in pairs for way in (pair, pair[::-1])]
    ways = [way for way in ways if set(way) <= set(split.vectors)]
    if not ways:
        raise ValueError("this split has no sample with two of the model's modalities: there is nothing to retrieve")
    directions = []
    for query, gallery in ways:
        rows = (split.vectors[query], split.owners[query])
        directions += score_direction(query, gallery, rows, split, widths=widths, ceilings=ceilings)
    if target in split.vectors:
        for query, vectors in split.fused.items():
            rows = (vectors, split.fused_owners[query])
            directions += score_direction(query, target, rows, split, widths=widths, ceilings=ceilings)
    return Evaluation(
        directions=directions,
        gaps=measure_gaps(split.vectors),
        mixed=measure_shares(split),
        samples=samples,
        items={name: len(rows) for name, rows in split.vectors.items()},
    )


def score_direction(
    query: str,
    gallery: str,
    queries: tuple[Tensor, list[set[int]]],
    split: EmbeddedSplit,
    *,
    widths: Sequence[int],
    ceilings: Mapping[str, float],
) -> list[Direction]:
    """Return the retrieval of a gallery by queries, at each width; queries without a hit in it are left out."""
    query_RD, owners = queries
    holders: dict[int, list[int]] = {}
    for row, groups in enumerate(split.owners[gallery]):
        for group in groups:
            holders.setdefault(group, []).append(row)
    positives = [sorted({row for group in groups for row in holders.get(group, ())}) for groups in owners]
    asked = [row for row, found in enumerate(positives) if found]
    if not asked:
        return []
    hits = [positives[row] for row in asked]
    gallery_RD, count = split.vectors[gallery], len(split.vectors[gallery])
    chance = sum(len(found) for found in hits) / (count * len(hits))
    name = name_direction(query, gallery)
    return [
        Direction(
            query=query,
            gallery=gallery,
            width=width,
            result=retrieval_metrics(query_RD[asked][:, :width], gallery_RD[:, :width], hits),
            chance=chance,
            ceiling=ceilings.get(name),
        )
        for width in widths
    ]


def name_direction(query: str, gallery: str) -> str:
    """Return the short name of a direction: `i2t`, or `ia2t` and `ia(sum)2t` for queries of several modalities."""
    names, _, how = query.partition(", ")
    letters = "".join(LETTERS[name] for name in names.split("+"))
    return f"{letters}{f'({how})' if how else ''}2{LETTERS[gallery]}"


def measure_gaps(vectors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the distance of the mean unit embeddings of each pair of modalities.

    Reference:
        Liang et al., Mind the Gap: Understanding the Modality Gap in Multi-modal Contrastive Learning, 2022.
    """
    means = {name: rows.mean(dim=0) for name, rows in vectors.items()}
    names = list(means)
    return {
        f"{first}-{second}": (means[first] - means[second]).norm().item()
        for place, first in enumerate(names)
        for second in names[place + 1 :]
    }


def measure_shares(split: EmbeddedSplit, *, seed: int = 0) -> MixedGallery | None:
    """Return which modalities take the top places of a gallery of as many items of each; a query does not find itself.

    Args:
        split: Unit embeddings.
        seed: Draws the items of modalities that have more than the smallest.
    """
    count = min(len(rows) for rows in split.vectors.values())
    if len(split.vectors) < 2 or count * len(split.vectors) <= TOP:
        return None
    generator = torch.Generator().manual_seed(seed)
    chosen = {
        name: normalize(rows[torch.randperm(len(rows), generator=generator)[:count]], dim=1)
        for name, rows in split.vectors.items()
    }
    gallery_GD = torch.cat(list(chosen.values()))
    modality_G = torch.arange(len(chosen)).repeat_interleave(count)
    shares = {}
    for place, (name, rows_QD) in enumerate(chosen.items()):
        similarity_QG = rows_QD @ gallery_GD.T
        similarity_QG[:, place * count : (place + 1) * count].fill_diagonal_(-torch.inf)
        top_QT = modality_G[similarity_QG.topk(TOP, dim=1).indices]
        shares[name] = {other: (top_QT == number).float().mean().item() for number, other in enumerate(chosen)}
    return MixedGallery(shares, dict.fromkeys(chosen, 1 / len(chosen)))
