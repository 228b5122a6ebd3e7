"""What can be encoded: texts, images and sounds in all their forms, to the items of an encoder's feed.

In a mixed list the type tells the modality:

    str                                       a text
    Path, or an object with `name`, `read()`  an image or a sound, by its suffix
    PIL image                                 an image
    (T,) tensor or array of floats            a sound at 16 kHz
    (samples, rate)                           a sound at any rate
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip_common.backbones import Encoder
from clip_common.errors import DataError, printable
from clip_common.features.jobs import name_source, read_content
from clip_common.images import IMAGE_SUFFIXES
from clip_common.sounds import SOUND_SUFFIXES, change_rate

SUFFIXES = {"image": IMAGE_SUFFIXES, "audio": SOUND_SUFFIXES}
"""Suffixes of the files of each modality."""


def find_modality(item: Any) -> str:
    """Return the modality of an item of a mixed list.

    Raises:
        ValueError: A file of another suffix, or an object of another type.
    """
    if isinstance(item, str):
        return "text"
    if isinstance(item, Image.Image):
        return "image"
    if isinstance(item, Tensor | np.ndarray | tuple):
        return "audio"
    if isinstance(item, Path) or hasattr(item, "read"):
        suffix = Path(item.name).suffix.lower()
        for modality, suffixes in SUFFIXES.items():
            if suffix in suffixes:
                return modality
        known = ", ".join((*IMAGE_SUFFIXES, *SOUND_SUFFIXES))
        raise ValueError(f"{printable(item.name)}: neither an image nor a sound by its suffix ({known}): rename it")
    raise ValueError(
        f"an item of type {type(item).__name__}: expected a str (a text), a Path or PIL image, or samples (T,) or "
        "(samples, rate) of a sound"
    )


def load_item(encoder: Encoder, item: Any) -> Any:
    """Return the item of an encoder's feed, in any of the forms of its modality; a str names a file unless it is text.

    Called from several threads at once.

    Raises:
        ValueError: One line: a file that cannot be read, damaged, or not of this modality.
    """
    kind, feed = encoder.spec.kind, encoder.feed
    if kind == "text":
        if not isinstance(item, str):
            raise ValueError(f"a text of type {type(item).__name__}: expected a str")
        return feed.load(item, name=name_source(item))
    if kind == "image" and isinstance(item, Image.Image):
        return feed.preprocess(item)  # type: ignore[attr-defined]
    if kind == "audio" and isinstance(item, Tensor | np.ndarray | tuple):
        return feed.from_samples(_convert_samples(item))  # type: ignore[attr-defined]
    source = Path(item) if isinstance(item, str) else item
    if not (isinstance(source, Path) or hasattr(source, "read")):
        raise ValueError(f"an item of type {type(item).__name__}: expected a file or decoded {_WORD[kind]}")
    try:
        content = read_content(source)
    except FileNotFoundError as error:
        raise DataError(f"{name_source(source)}: no such file") from error
    except OSError as error:
        raise DataError(f"{name_source(source)}: cannot be read ({error.strerror or error})") from error
    return feed.load(content, name=name_source(source))


_WORD = {"image": "pixels (a PIL image)", "audio": "samples"}


def _convert_samples(item: Any) -> Tensor:
    """Return samples as (T,) float32 at 16 kHz, as far as they can be."""
    samples, rate = item if isinstance(item, tuple) else (item, None)
    samples_T = torch.as_tensor(samples).cpu()
    if samples_T.is_floating_point():
        samples_T = samples_T.float()
    if rate is None or samples_T.ndim != 1 or not len(samples_T):
        return samples_T  # the feed says what is wrong with other shapes
    return change_rate(samples_T, rate=int(rate))
