"""Captions that say the same: one text apart from upper case, whitespace and punctuation.

T texts of a batch.
"""

import hashlib
import unicodedata
from functools import lru_cache

import torch
from torch import Tensor


def normalise_caption(text: str) -> str:
    """Return the words in lower case, with single spaces instead of whitespace and punctuation.

    A text of punctuation alone stays as it was, so that it equals itself only.
    """
    letters = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(letter)[0] in "PZC" else letter for letter in letters)
    return " ".join(kept.split()) or text.strip()


@lru_cache(maxsize=1 << 18)
def hash_caption(text: str) -> int:
    """Return a 63-bit number, the same in every process, that equal captions share."""
    return int.from_bytes(hashlib.blake2b(normalise_caption(text).encode(), digest_size=8).digest()) >> 1


def count_same(image_ids_T: Tensor, text_ids_T: Tensor) -> Tensor:
    """Return (T, 3) long: texts of the batch with the same image, with the same caption, and with either; itself too.

    Args:
        image_ids_T, text_ids_T: (T,) long, on the CPU.
    """
    both_T2 = torch.stack([image_ids_T, text_ids_T], dim=1)
    image_T, text_T, both_T = (_count_equal(ids) for ids in (image_ids_T, text_ids_T, both_T2))
    return torch.stack([image_T, text_T, image_T + text_T - both_T], dim=1)


def _count_equal(ids: Tensor) -> Tensor:
    _, place_T, counts = torch.unique(ids, dim=0, return_inverse=True, return_counts=True)
    return counts[place_T]
