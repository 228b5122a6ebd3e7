"""Embeddings of a split to retrieval metrics both ways, with chance and a ceiling beside them. No files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clip_common.metrics import ImageTextResult, image_text_retrieval
from clipse.scoring.embedding import EmbeddedPairs


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on one split.

    Attributes:
        result: `.metrics` holds i2t/R@1 … t2i/mAP@10 as fractions and rsum from 0 to 600, `.intervals` their 95 %
            bootstrap intervals over images.
        chance: Expected rsum of a random ranking of these images and captions.
        ceiling: Metrics of the attribute oracle, under the same keys; empty except on the procedural world.
        images, captions: Number of each that was scored.
    """

    result: ImageTextResult
    chance: float
    ceiling: Mapping[str, float]
    images: int
    captions: int

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values, as result.json holds them."""
        return {
            "metrics": self.result.metrics,
            "intervals_95": {key: list(bounds) for key, bounds in self.result.intervals.items()},
            "chance_rsum": self.chance,
            "ceiling": dict(self.ceiling),
            "images": self.images,
            "captions": self.captions,
        }


def evaluate(pairs: EmbeddedPairs, *, ceiling: Mapping[str, float]) -> Evaluation:
    """Compute the metrics of embedded images and captions; `ceiling` is kept beside them."""
    return Evaluation(
        result=image_text_retrieval(pairs.image_ND, pairs.text_TD, pairs.text_to_image_T),
        chance=compute_chance_rsum(len(pairs.image_ND), len(pairs.text_TD)),
        ceiling=ceiling,
        images=len(pairs.image_ND),
        captions=len(pairs.text_TD),
    )


def compute_chance_rsum(images: int, captions: int, ks: tuple[int, ...] = (1, 5, 10)) -> float:
    """Return the expected rsum of a random ranking, for an equal number of captions per image.

    Text to image hits within K with probability K/N; image to text with 1 − C(T−c, K)/C(T, K) for c captions among T.
    """
    own = captions / images
    text_to_image = sum(min(1.0, k / images) for k in ks)
    image_to_text = 0.0
    for k in ks:
        miss = 1.0
        for drawn in range(k):
            miss *= max(0.0, captions - own - drawn) / max(1.0, captions - drawn)
        image_to_text += 1.0 - miss
    return 100.0 * (text_to_image + image_to_text)
