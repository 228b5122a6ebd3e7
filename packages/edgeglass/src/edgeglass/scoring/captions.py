"""Scores of captions: CIDEr-D and BLEU by pycocoevalcap's scorers, with our own tokens instead of its Java tokenizer.

Scores are therefore close to published ones, but not equal: compare them with scores computed here.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SUFFIX = r"n't|'(?:s|re|ve|ll|d|m)"
_TOKEN = re.compile(rf"(?:{_SUFFIX})\b|\w+(?:-\w+)*")


def tokenize_caption(text: str) -> list[str]:
    """Return lower-case words without punctuation; as in Penn Treebank, `dog's` is `dog 's`, `isn't` is `is n't`."""
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return _TOKEN.findall(re.sub(rf"(?<=\w)({_SUFFIX})\b", r" \1", text))


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Return the CIDEr-D of each caption (N,), 0 to 10; their mean is the score of the set (Vedantam et al., 2015).

    Words that many images' references use count less, so a score depends on the set.

    Args:
        captions: N captions, of different images.
        references: One or several right captions of each.

    Raises:
        ValueError: Fewer than two images, for which all words count nothing; not as many captions as references; an
            image without references.
        ImportError: pycocoevalcap is not installed.
    """
    from pycocoevalcap.cider.cider import Cider

    if len(captions) < 2:
        raise ValueError(
            f"CIDEr weighs words by how few images use them: expected 2 images or more, got {len(captions)}"
        )
    _, scores = Cider().compute_score(*_prepare(captions, references))
    return np.asarray(scores, dtype=np.float64)


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, float, float, float]:
    """Return BLEU-1, -2, -3 and -4 of the set, 0 to 1, with the length of the closest reference.

    Args:
        captions, references: As for `cider`, for one image or more.

    Raises:
        ValueError: As for `cider`.
        ImportError: pycocoevalcap is not installed.
    """
    from pycocoevalcap.bleu.bleu import Bleu

    scores, _ = Bleu(4).compute_score(*_prepare(captions, references), verbose=0)
    one, two, three, four = (float(score) for score in scores)
    return one, two, three, four


def _prepare(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Return references and captions by image, as texts of tokens with spaces between them."""
    if not captions or len(captions) != len(references) or not all(references):
        raise ValueError(
            f"expected one caption and some references for each image, got {len(captions)} captions and "
            f"{len(references)} lists of references, {sum(not texts for texts in references)} of them empty"
        )
    right = {row: [" ".join(tokenize_caption(text)) for text in texts] for row, texts in enumerate(references)}
    return right, {row: [" ".join(tokenize_caption(text))] for row, text in enumerate(captions)}
