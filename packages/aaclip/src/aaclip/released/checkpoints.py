"""Import checkpoints of the released code, `text_adapter.pth` and `image_adapter.pth`; no pickle is executed."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from aaclip.config import Config
from aaclip.detector.detector import Detector
from aaclip.detector.files import load_trained, trained_state
from aaclip.models.backbone import load_backbone, make_model
from clip_common.training.checkpoint import read_checkpoint

FILES = {"text_adapter": "text_adapter.pth", "image_adapter": "image_adapter.pth"}

# the released `fc.0`, and the documents' `fc1` and `fc2`, by the position of the layer in ours
_LAYER = r"(?:fc\.0|fc|(?P<second>fc2)|fc1)\.(?P<what>weight|bias)"
_PATTERNS = {
    rf"(?P<number>\d+)\.{_LAYER}": "text_adapter.layers.{number}",
    rf"layer_adapters\.(?P<number>\d+)\.{_LAYER}": "image_adapter.layers.{number}",
    rf"seg_proj\.(?P<number>\d+)\.{_LAYER}": "image_adapter.segmentation.{number}",
    rf"det_proj\.{_LAYER}": "image_adapter.detection",
}


def import_official(folder: Path, config: Config) -> Detector:
    """Return a detector from a folder with the two files of a released training.

    Args:
        folder: Holds text_adapter.pth, and image_adapter.pth after stage 2.
        config: Must describe what was trained: `--config official` for the released code.

    Raises:
        ValueError: One line: a missing file, another kind of file, or other adapters than configured.
    """
    model = make_model(load_backbone(config.backbone), config)
    state = dict(trained_state(model))
    for key, name in FILES.items():
        file = folder / name
        if key == "image_adapter" and not file.exists():
            continue
        state |= rename_weights(read_checkpoint(file, key=key)[key], blocks=len(model.text_adapter.layers), file=file)
    load_trained(model, state, source=folder)
    return Detector(model, config)


def rename_weights(theirs: Mapping[str, Tensor], *, blocks: int, file: Path) -> dict[str, Tensor]:
    """Rename weights of the released code to ours; text adapter number `blocks` is the final projection.

    Raises:
        ValueError: A name that the released code does not use.
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
