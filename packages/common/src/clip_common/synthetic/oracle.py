"""The ceiling of retrieval: results of a reader who knows every attribute of every picture and reads every caption.

C captions, N scenes, parts or people, S slots for things (at most four), V attribute values.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from clip_common.errors import check_list
from clip_common.synthetic.captions import WORDS, Claims, read_caption
from clip_common.synthetic.part_captions import read_part_caption
from clip_common.synthetic.parts import Part
from clip_common.synthetic.people import CLAIMS, Person, read_person_caption
from clip_common.synthetic.scenes import Scene

_VALUES = {
    (attribute, value): column
    for column, (attribute, value) in enumerate((name, value) for name, values in WORDS.items() for value in values)
}
SLOTS = 4
VIOLATION = 20.0  # a false claim outweighs any number of true ones
_CHUNK = 512  # captions at a time

Floats = NDArray[np.float32]


def oracle_scores(scenes: Sequence[Scene], captions: Sequence[str]) -> Floats:
    """Return the (C, N) score of each caption for each scene: true claims, minus twenty for each false one.

    The things of a caption are matched one to one with those of the scene so that as many claims as possible are true.

    Raises:
        ValueError: A caption names no thing of the world.
    """
    check_list(captions, "captions", empty=False)
    seen = np.zeros((len(scenes), SLOTS, len(_VALUES)), dtype=np.float32)
    for row, scene in enumerate(scenes):
        for slot, thing in enumerate(scene.things):
            for attribute in WORDS:
                seen[row, slot, _VALUES[attribute, getattr(thing, attribute)]] = 1
    grounds = np.array([scene.background for scene in scenes])
    claims = [read_caption(text) for text in captions]
    parts = [_chunk_scores(claims[start : start + _CHUNK], seen, grounds) for start in range(0, len(claims), _CHUNK)]
    return np.concatenate(parts)


def _chunk_scores(claims: Sequence[Claims], seen_NSV: Floats, grounds_N: NDArray[np.str_]) -> Floats:
    said = np.zeros((len(claims), SLOTS, len(_VALUES)), dtype=np.float32)
    for row, claim in enumerate(claims):
        for slot, thing in enumerate(claim.things):
            for attribute, value in thing.items():
                said[row, slot, _VALUES[attribute, value]] = 1
    # (C, S, N, S): how many claims about a thing of the caption are true of a thing of the scene
    held = np.tensordot(said, seen_NSV, axes=(2, 2))
    slots = np.arange(SLOTS)
    best = np.max([held[:, slots, :, list(order)].sum(axis=0) for order in permutations(range(SLOTS))], axis=0)
    total = said.sum(axis=(1, 2))
    for row, claim in enumerate(claims):
        if claim.background is not None:
            best[row] += grounds_N == claim.background
            total[row] += 1
    return np.asarray(best - VIOLATION * (total[:, None] - best), dtype=np.float32)


def part_scores(parts: Sequence[Part], captions: Sequence[str]) -> Floats:
    """Return the (C, N) score of each caption for each part, counted as in `oracle_scores`.

    Claims are about kind, colour, texture, background and condition.

    Raises:
        ValueError: A caption names no thing of the world, or no condition.
    """
    check_list(captions, "captions", empty=False)
    truths = []
    for part in parts:
        conditions = ("flawless",) if part.defect is None else ("damaged", part.defect)
        own = [(name, getattr(part, name)) for name in ("kind", "colour", "texture", "background")]
        truths.append([*own, *(("condition", condition) for condition in conditions)])
    return _count_claims(truths, [read_part_caption(text) for text in captions])


def person_scores(people: Sequence[Person], captions: Sequence[str]) -> Floats:
    """Return the (C, N) score of each caption for each person, counted as in `oracle_scores`.

    Raises:
        ValueError: A caption claims nothing about a person.
    """
    check_list(captions, "captions", empty=False)
    truths = [[(name, getattr(person, name)) for name in CLAIMS] for person in people]
    return _count_claims(truths, [read_person_caption(text) for text in captions])


def _count_claims(truths: Sequence[Sequence[tuple[str, str]]], claims: Sequence[Mapping[str, str]]) -> Floats:
    """Return (C, N): how many claims of each caption are true of each picture, minus twenty for each false one."""
    values = {value: column for column, value in enumerate(sorted({item for one in claims for item in one.items()}))}
    seen_NV = np.zeros((len(truths), len(values)), dtype=np.float32)
    for row, own in enumerate(truths):
        seen_NV[row, [values[truth] for truth in own if truth in values]] = 1
    said_CV = np.zeros((len(claims), len(values)), dtype=np.float32)
    for row, claim in enumerate(claims):
        said_CV[row, [values[item] for item in claim.items()]] = 1
    held_CN = said_CV @ seen_NV.T
    return np.asarray(held_CN - VIOLATION * (said_CV.sum(axis=1, keepdims=True) - held_CN), dtype=np.float32)


def attribute_oracle(pictures: Sequence[Scene | Part | Person], captions: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return retrieval metrics of the oracle's scores: R@1, R@5 and R@10 both ways (0 to 1), and rsum (0 to 600).

    Ties count as in `clip_common.metrics`: all orders of tied pictures are equally likely, as if one guessed.

    Args:
        pictures: N scenes, N parts, or N people.
        captions: The captions of each.

    Raises:
        ValueError: Scenes, parts and people are mixed, or a caption cannot be read.
    """
    check_list(captions, "captions", empty=False)
    for texts in captions:
        check_list(texts, "captions of a scene", empty=False)
    texts = [text for own in captions for text in own]
    scenes = [picture for picture in pictures if isinstance(picture, Scene)]
    parts = [picture for picture in pictures if isinstance(picture, Part)]
    people = [picture for picture in pictures if isinstance(picture, Person)]
    if max(len(scenes), len(parts), len(people)) < len(pictures):
        raise ValueError(
            f"got {len(scenes)} scenes, {len(parts)} parts and {len(people)} people: give the oracle one of these kinds"
        )
    if scenes:
        scores_CN = oracle_scores(scenes, texts)
    else:
        scores_CN = part_scores(parts, texts) if parts else person_scores(people, texts)
    return measure_scores(scores_CN, captions=[len(texts) for texts in captions])


def measure_scores(scores_CN: Floats, *, captions: Sequence[int]) -> dict[str, float]:
    """Return retrieval metrics of scores: i2t/R@1 … t2i/R@10 (0 to 1), and rsum (0 to 600).

    Args:
        scores_CN: Score of each caption for each of N pictures or sounds.
        captions: Number of captions of each, in the order of the rows.
    """
    owner_C = np.repeat(np.arange(len(captions)), captions)
    own_C = scores_CN[np.arange(len(owner_C)), owner_C]
    text_ahead, text_level = (scores_CN > own_C[:, None]).sum(axis=1), (scores_CN == own_C[:, None]).sum(axis=1) - 1
    best_N = np.full(len(captions), -np.inf, dtype=np.float32)
    np.maximum.at(best_N, owner_C, own_C)
    # other captions of the same image do not compete with its best one
    rivals_CN = np.where(owner_C[:, None] == np.arange(len(captions)), -np.inf, scores_CN)
    image_ahead, image_level = (rivals_CN > best_N).sum(axis=0), (rivals_CN == best_N).sum(axis=0)
    metrics = {f"i2t/R@{k}": expected_recall(image_ahead, image_level, k=k) for k in (1, 5, 10)}
    metrics |= {f"t2i/R@{k}": expected_recall(text_ahead, text_level, k=k) for k in (1, 5, 10)}
    return metrics | {"rsum": 100 * sum(metrics.values())}


def expected_recall(ahead_N: NDArray[np.int64], level_N: NDArray[np.int64], *, k: int) -> float:
    """Return R@K, given how many others score higher than the right one (`ahead_N`) and how many tie with it."""
    return float(np.clip((k - ahead_N) / (level_N + 1), 0, 1).mean())
