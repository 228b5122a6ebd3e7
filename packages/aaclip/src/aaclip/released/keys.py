"""Keys of the released code's checkpoints: our names for them, and what they say about the configuration."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from clip_common.errors import printable

Weights = Mapping[str, Tensor]

# the released `fc.0` (an activation follows) and `fc` (none does), and the documents' `fc1` and `fc2`
_LAYER = r"(?P<layer>fc\.0|fc|fc1|fc2)\.(?P<what>weight|bias)"
_TEXT = {rf"(?P<number>\d+)\.{_LAYER}": "text_adapter.layers.{number}"}
_IMAGE = {
    rf"layer_adapters\.(?P<number>\d+)\.{_LAYER}": "image_adapter.layers.{number}",
    rf"seg_proj\.(?P<number>\d+)\.{_LAYER}": "image_adapter.segmentation.{number}",
    rf"det_proj\.{_LAYER}": "image_adapter.detection",
}


def rename_text(theirs: Weights) -> dict[str, Tensor]:
    """Rename text adapters to our names; the last one is the final projection."""
    last = f"text_adapter.layers.{max(_numbers(theirs))}."
    return {name.replace(last, "text_adapter.final."): tensor for name, tensor in _rename(theirs, _TEXT).items()}


def rename_image(theirs: Weights) -> dict[str, Tensor]:
    """Rename image adapters and heads to our names."""
    return _rename(theirs, _IMAGE)


def tell_text(theirs: Weights, *, file: Path) -> list[str]:
    """Return the overrides that follow from the keys of text adapters.

    Raises:
        ValueError: A key that the released code does not use, or adapters that are missing between others.
    """
    _check_known(theirs, _TEXT, file=file)
    adapters = _count(theirs, "", what="text adapter", file=file) - 1
    final = {name.removeprefix(f"{adapters}.") for name in theirs if name.startswith(f"{adapters}.")}
    if not final <= {"fc.0.weight", "fc.weight"}:
        raise ValueError(
            f"{printable(file)} ends in text adapter {adapters}, without the final projection "
            f"{adapters + 1}.fc.0.weight: get the file again"
        )
    kind = _tell_kind({name: tensor for name, tensor in theirs.items() if not name.startswith(f"{adapters}.")})
    final_init = "xavier" if final == {"fc.0.weight"} else "clip"
    return [f"adapters.text_blocks={adapters}", f"adapters.final_init={final_init}", *kind]


def tell_image(theirs: Weights, *, file: Path) -> list[str]:
    """Return the overrides that follow from the keys of image adapters and heads.

    Raises:
        ValueError: A key that the released code does not use, missing adapters or heads, or heads of several kinds.
    """
    _check_known(theirs, _IMAGE, file=file)
    adapters = _count(theirs, "layer_adapters.", what="image adapter", file=file)
    if not _count(theirs, "seg_proj.", what="head", file=file):
        raise ValueError(f"{printable(file)} has no head seg_proj.0: it is not all of image_adapter")
    kind = _tell_kind({name: tensor for name, tensor in theirs.items() if name.startswith("layer_adapters.")})
    heads = {_tell_activation(name, theirs) for name in theirs if not name.startswith("layer_adapters.")}
    if len(heads) > 1:
        raise ValueError(f"{printable(file)} has heads of several kinds, {', '.join(sorted(heads))}: expected one kind")
    detection = any(name.startswith("det_proj.") for name in theirs)
    return [
        f"adapters.image_blocks={adapters}",
        *kind,
        f"heads.activation={heads.pop()}",
        *(["heads.detection=mean"] if detection else []),
    ]


def _tell_activation(name: str, theirs: Weights) -> str:
    """Return the `heads.activation` of the head that a key belongs to."""
    stem = name.rpartition(".")[0]
    if f"{stem}.bias" in theirs:
        return "relu"
    return "leaky" if stem.endswith(".fc.0") else "none"


def _tell_kind(adapters: Weights) -> list[str]:
    """Return the `adapters.kind` of adapters; nothing if there is none."""
    first = next((tensor for name, tensor in adapters.items() if name.endswith("fc1.weight")), None)
    if first is not None:
        return ["adapters.kind=mlp" if first.shape[0] == first.shape[1] else "adapters.kind=bottleneck"]
    return ["adapters.kind=linear"] if adapters else []


def _numbers(theirs: Iterable[str], prefix: str = "") -> set[int]:
    return {int(name.removeprefix(prefix).partition(".")[0]) for name in theirs if name.startswith(prefix)}


def _count(theirs: Weights, prefix: str, *, what: str, file: Path) -> int:
    """Return how many modules are numbered from 0 without a gap."""
    numbers = _numbers(theirs, prefix)
    missing = set(range(max(numbers, default=-1) + 1)) - numbers
    if missing:
        raise ValueError(
            f"{printable(file)} lacks {what} {min(missing)}, though it has {what} {max(numbers)}: get the file again"
        )
    return len(numbers)


def _check_known(theirs: Weights, patterns: Iterable[str], *, file: Path) -> None:
    unknown = [name for name in theirs if not any(re.fullmatch(pattern, name) for pattern in patterns)]
    if unknown or not theirs:
        found = unknown[0] if unknown else "nothing"
        raise ValueError(f"{printable(file)}: {found} is no weight of AA-CLIP's adapters: give the file it saved")


def _rename(theirs: Weights, patterns: Mapping[str, str]) -> dict[str, Tensor]:
    ours = {}
    for name, tensor in theirs.items():
        match, home = next(
            (found, home) for pattern, home in patterns.items() if (found := re.fullmatch(pattern, name))
        )
        place = home.format(**match.groupdict())
        ours[f"{place}.{2 if match['layer'] == 'fc2' else 0}.{match['what']}"] = tensor
    return ours
