"""Ceilings of retrieval by sounds: results of a listener who hears kind, colour, size and order of the things.

C captions, N scenes, S slots for things (at most four), V attribute values.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import permutations

import numpy as np

from clip_common.errors import check_list
from clip_common.synthetic.captions import WORDS, read_caption
from clip_common.synthetic.oracle import SLOTS, VIOLATION, Floats, expected_recall, measure_scores
from clip_common.synthetic.scenes import PLACES, Scene
from clip_common.synthetic.sounds import in_reading_order

AUDIBLE = ("kind", "colour", "size")
_VALUES = {
    (name, value): column
    for column, (name, value) in enumerate((name, value) for name in AUDIBLE for value in WORDS[name])
}


def sound_oracle(scenes: Sequence[Scene]) -> dict[str, float]:
    """Return the ceiling of sound-image retrieval.

    Ties count as in `clip_common.metrics`: among scenes that sound alike the listener guesses.

    Args:
        scenes: N scenes, each with one sound and one image.

    Returns:
        s2i/R@1, s2i/R@5, s2i/R@10 (sound to image) and i2s/R@1, … (image to sound), 0 to 1, and rsum, 0 to 600.
    """
    heard = [tuple((thing.kind, thing.colour, thing.size) for thing in in_reading_order(scene)) for scene in scenes]
    alike = Counter(heard)
    level_N = np.array([alike[one] - 1 for one in heard])
    metrics = {
        f"{way}/R@{k}": expected_recall(np.zeros_like(level_N), level_N, k=k)
        for way in ("s2i", "i2s")
        for k in (1, 5, 10)
    }
    return metrics | {"rsum": 100 * sum(metrics.values())}


def sound_caption_oracle(scenes: Sequence[Scene], captions: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the ceiling of sound-caption retrieval.

    A caption fits a sound if its audible claims are true, and if the order of the tones allows the places that it
    names: things are heard in reading order, so a thing at the top left is the first one. Among sounds that fit equally
    the listener guesses; one who weighs how likely each is, as captions seldom leave things out, does a little better.

    Args:
        scenes: N scenes, each with one sound.
        captions: The captions of each.

    Returns:
        t2s/R@1, t2s/R@5, t2s/R@10 (caption to sound) and s2t/R@1, … (sound to caption), 0 to 1, and rsum, 0 to 600.

    Raises:
        ValueError: A caption names no thing of the world.
    """
    check_list(captions, "captions", empty=False)
    for texts in captions:
        check_list(texts, "captions of a scene", empty=False)
    scores_CN = score_sounds(scenes, [text for texts in captions for text in texts])
    metrics = measure_scores(scores_CN, captions=[len(texts) for texts in captions])
    return {name.replace("i2t", "s2t").replace("t2i", "t2s"): value for name, value in metrics.items()}


def score_sounds(scenes: Sequence[Scene], captions: Sequence[str]) -> Floats:
    """Return the (C, N) score of each caption for each sound: true claims, minus twenty for each false one.

    The things of a caption are matched one to one with the tones so that as many claims as possible are true. An order
    of the tones that contradicts the named places counts as a false claim.
    """
    heard = [in_reading_order(scene) for scene in scenes]
    count_N = np.array([len(things) for things in heard])
    seen_NSV = np.zeros((len(scenes), SLOTS, len(_VALUES)), dtype=np.float32)
    for row, things in enumerate(heard):
        for slot, thing in enumerate(things):
            for name in AUDIBLE:
                seen_NSV[row, slot, _VALUES[name, getattr(thing, name)]] = 1
    scores = np.empty((len(captions), len(scenes)), dtype=np.float32)
    for row, text in enumerate(captions):
        named = read_caption(text).things
        said_SV = np.zeros((len(named), len(_VALUES)), dtype=np.float32)
        for slot, claims in enumerate(named):
            for name in AUDIBLE:
                if name in claims:
                    said_SV[slot, _VALUES[name, claims[name]]] = 1
        true_NSS = seen_NSV @ said_SV.T  # tones by things of the caption
        places = [PLACES.index(claims["place"]) if "place" in claims else None for claims in named]
        best_N = np.full(len(scenes), -np.inf)
        for tones in permutations(range(SLOTS), len(named)):
            claims_N = sum(true_NSS[:, tone, slot] for slot, tone in enumerate(tones))
            best_N = np.maximum(best_N, claims_N - _contradict(tones, places, count_N))
        scores[row] = best_N - VIOLATION * (said_SV.sum() - best_N)
    return scores


def _contradict(tones: Sequence[int], places: Sequence[int | None], count_N: np.ndarray) -> np.ndarray:
    """Return whether these tones cannot come from these places (N,), given how many tones each sound has.

    Between two things whose places are named, and before the first and after the last, there must be as many places in
    reading order as there are tones.
    """
    known = sorted((tone, place) for tone, place in zip(tones, places, strict=True) if place is not None)
    wrong = any(
        second_place - first_place < second_tone - first_tone
        for (first_tone, first_place), (second_tone, second_place) in zip([(-1, -1), *known], known, strict=False)
    )
    last_tone, last_place = known[-1] if known else (-1, -1)
    after_N = (count_N > last_tone) & (len(PLACES) - last_place < count_N - last_tone)
    return wrong | after_N
