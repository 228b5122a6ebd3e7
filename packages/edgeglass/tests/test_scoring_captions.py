"""Scores of captions: tokens, CIDEr-D against a short reference, BLEU by hand."""

import math
from collections import Counter

import numpy as np
import pytest

from clip_common.synthetic import captions, sample_scene
from edgeglass.scoring.captions import bleu, cider, tokenize_caption


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog, running!", "a dog running"),
        ("The dog's ball isn't red.", "the dog 's ball is n't red"),
        ("A man in a T-shirt \N{EM DASH} he\N{RIGHT SINGLE QUOTATION MARK}s happy", "a man in a t-shirt he 's happy"),
        ('"zwölf" Boxkämpfer; 犬', "zwölf boxkämpfer 犬"),
        (" . ", ""),
    ],
)
def test_tokens(text, expected):
    assert tokenize_caption(text) == expected.split()


def ngrams(text: str, size: int) -> Counter:
    words = tokenize_caption(text)
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def reference_cider(candidates, references) -> list[float]:
    """CIDEr-D as its paper defines it: clipped tf-idf cosines, a penalty of length, the mean over 1- to 4-grams."""
    images = len(candidates)

    def vector(text, size):
        weights = {}
        for gram, count in ngrams(text, size).items():
            used = sum(any(gram in ngrams(other, size) for other in texts) for texts in references)
            weights[gram] = count * (math.log(images) - math.log(max(1, used)))
        return weights

    def norm(weights):
        return math.sqrt(sum(weight**2 for weight in weights.values()))

    scores = []
    for candidate, texts in zip(candidates, references, strict=True):
        total = 0.0
        for text in texts:
            # the length of a text of one word counts as 0: pycocoevalcap counts pairs of words
            lengths = [max(0, len(tokenize_caption(each)) - 1) for each in (candidate, text)]
            penalty = math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * 6.0**2))
            for size in (1, 2, 3, 4):
                said, right = vector(candidate, size), vector(text, size)
                product = sum(min(said[gram], right.get(gram, 0)) * right.get(gram, 0) for gram in said)
                if norm(said) and norm(right):
                    total += penalty * product / (norm(said) * norm(right)) / 4
        scores.append(10 * total / len(texts))
    return scores


def test_cider_is_that_of_the_paper():
    scenes = [sample_scene(1, index) for index in range(8)]
    texts = [captions(scene, 6) for scene in scenes]
    said = [own[0] for own in texts[:6]] + [texts[0][0], "mug"]
    references = [own[1:] for own in texts]
    scores = cider(said, references)
    assert scores.shape == (8,)
    np.testing.assert_allclose(scores, reference_cider(said, references), rtol=1e-9)


def test_cider_by_hand():
    references = [["a red mug on sand"], ["two blue stars in snow"]]
    # every n-gram is of one image only, so equal texts have a cosine of 1 for each length
    assert cider(["A red mug on sand.", "two blue stars in snow"], references) == pytest.approx([10, 10])
    assert cider(["two blue stars in snow", "a red mug on sand"], references) == pytest.approx([0, 0])
    # two of five words, one of four pairs: each n-gram weighs log 2
    words, pairs = 2 / math.sqrt(2 * 5), 1 / math.sqrt(1 * 4)
    penalty = math.exp(-((1 - 4) ** 2) / 72)
    assert cider(["red mug", "snow"], references)[0] == pytest.approx(10 * penalty * (words + pairs) / 4)


def test_bleu_by_hand(capsys):
    assert bleu(["a red mug on sand"], [["A red mug on sand!", "something else"]]) == pytest.approx((1, 1, 1, 1))
    one, two, three, four = bleu(["a red mug in sand"], [["a red mug on sand"]])
    assert one == pytest.approx(4 / 5)
    assert two == pytest.approx(math.sqrt(4 / 5 * 2 / 4))
    assert three == pytest.approx((4 / 5 * 2 / 4 * 1 / 3) ** (1 / 3))
    assert four == pytest.approx(0, abs=1e-3)
    # too short: exp(1 - 5/2)
    assert bleu(["red mug"], [["a red mug on sand"]])[0] == pytest.approx(math.exp(1 - 5 / 2))
    assert capsys.readouterr().out == ""


def test_an_empty_caption_scores_nothing():
    references = [["a red mug"], ["a blue star"]]
    assert cider(["", "a blue star"], references)[0] == 0
    assert bleu(["", ""], references) == pytest.approx((0, 0, 0, 0))


@pytest.mark.parametrize("score", [cider, bleu])
def test_what_cannot_be_scored(score):
    with pytest.raises(ValueError, match="got 2 captions and 1 lists of references"):
        score(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="1 of them empty"):
        score(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="expected"):
        score([], [])
    with pytest.raises(ValueError, match="expected 2 images or more, got 1"):
        cider(["a"], [["a"]])
