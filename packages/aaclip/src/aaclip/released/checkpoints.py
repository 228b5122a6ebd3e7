"""Checkpoints of the released code, `text_adapter.pth` and `image_adapter.pth`: read without executing any pickle."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from aaclip.config import Config
from aaclip.detector.detector import Detector
from aaclip.detector.files import load_trained, trained_state
from aaclip.models import AnomalyModel
from aaclip.models.backbone import load_backbone
from clip_common.training.checkpoint import read_checkpoint

FILES = {"text_adapter": "text_adapter.pth", "image_adapter": "image_adapter.pth"}

# the released `fc.0`, and the documents' `fc1` and `fc2`, by where the layer stands in ours
_LAYER = r"(?:fc\.0|fc|(?P<second>fc2)|fc1)\.(?P<what>weight|bias)"
_PATTERNS = {
    rf"(?P<number>\d+)\.{_LAYER}": "text_adapter.layers.{number}",
    rf"layer_adapters\.(?P<number>\d+)\.{_LAYER}": "image_adapter.layers.{number}",
    rf"seg_proj\.(?P<number>\d+)\.{_LAYER}": "image_adapter.segmentation.{number}",
    rf"det_proj\.{_LAYER}": "image_adapter.detection",
}


def import_official(folder: Path, config: Config) -> Detector:
    """A detector from a folder with the two files of a released training.

    Args:
        folder: Holds text_adapter.pth, and image_adapter.pth where stage 2 was run.
        config: Must describe what was trained: `--config official` for the released code.

    Raises:
        ValueError: One line: a file that is absent or is no such checkpoint, or other adapters than configured.
    """
    model = AnomalyModel(load_backbone(config.backbone), config)
    state = dict(trained_state(model))
    for key, name in FILES.items():
        file = folder / name
        if key == "image_adapter" and not file.exists():
            continue
        state |= renamed(read_checkpoint(file, key=key)[key], blocks=len(model.text_adapter.layers), file=file)
    load_trained(model, state, source=folder)
    return Detector(model, config)


def renamed(theirs: Mapping[str, Tensor], *, blocks: int, file: Path) -> dict[str, Tensor]:
    """Their names to ours; text adapter number `blocks` is the final projection.

    Raises:
        ValueError: A name that is none of theirs.
    """
    ours = {}
    for name, tensor in theirs.items():
        found = [(re.fullmatch(pattern, name), home) for pattern, home in _PATTERNS.items()]
        match, home = next(((one, home) for one, home in found if one), (None, ""))
        if match is None:
            raise ValueError(f"{file}: {name} is no weight of AA-CLIP's adapters")
        place = home.format(**match.groupdict())
        if place == f"text_adapter.layers.{blocks}":
            place = "text_adapter.final"
        ours[f"{place}.{2 if match['second'] else 0}.{match['what']}"] = tensor
    return ours
