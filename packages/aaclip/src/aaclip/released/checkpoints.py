"""Import checkpoints of the released code, `text_adapter.pth` and `image_adapter.pth`; no pickle is executed.

    aaclip import ckpt/mvtec_full detectors/mvtec --epoch 15

The files say which adapters and heads they are of, so the configuration takes that from them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from torch import Tensor

from aaclip.config import Config
from aaclip.detector.calibration import UNFITTED
from aaclip.detector.detector import Detector
from aaclip.detector.files import TEXT, Stored, load_trained, trained_state, write_detector
from aaclip.models.backbone import load_backbone, make_model
from aaclip.released.keys import rename_image, rename_text, tell_image, tell_text
from clip_common.backbones import fingerprint
from clip_common.config import load_config
from clip_common.errors import printable
from clip_common.training.checkpoint import read_checkpoint

TEXT_FILE, IMAGE_FILE = "text_adapter.pth", "image_adapter.pth"
NUMBERED = re.compile(r"image_adapter_(\d+)\.pth")
"""The image adapters after each epoch."""


@dataclass(frozen=True)
class Released:
    """Checkpoints of the released code.

    Attributes:
        files: That were read.
        told: Overrides that follow from their keys, `section.field=value` each.
        config: With them.
        state: Weights by our names.
        text, image: Stages that the files are of.
    """

    files: tuple[Path, ...]
    told: tuple[str, ...]
    config: Config
    state: Mapping[str, Tensor]
    text: bool
    image: bool


def read_released(
    source: Path, *, config: str = "official", overrides: Sequence[str] = (), epoch: int | None = None
) -> Released:
    """Read the checkpoints of a released training.

    Without image_adapter.pth the result is the text stage alone. Without text_adapter.pth classes are embedded by plain
    CLIP, as after `--text_epoch 0` of the released code.

    Args:
        source: Folder with the files, or one of them; image adapters bring the text adapters beside them.
        config: What the files do not say: a configuration's name, or a file.
        overrides: `section.field=value` each, over that.
        epoch: Read image_adapter_{epoch}.pth instead of the last one.

    Raises:
        ValueError: One line: no such file, another kind of file, or one that contradicts an override; the line has the
            fields that would fit.
    """
    text_file, image_file = find_files(source, epoch=epoch)
    told: list[str] = []
    state: dict[str, Tensor] = {}
    if text_file is not None:
        weights = _read(text_file, key="text_adapter")
        told += tell_text(weights, file=text_file)
        state |= rename_text(weights)
    else:
        told.append("stages.text.epochs=0")
    if image_file is not None:
        weights = _read(image_file, key="image_adapter")
        told += [fact for fact in tell_image(weights, file=image_file) if fact not in told]
        state |= rename_image(weights)
    files = tuple(file for file in (text_file, image_file) if file is not None)
    settings = settle_config(config, overrides, told, source=source)
    if image_file is not None:
        check_heads(settings, state, file=image_file)
    return Released(files, tuple(told), settings, state, text=text_file is not None, image=image_file is not None)


def check_heads(config: Config, state: Mapping[str, Tensor], *, file: Path) -> None:
    """Raise ValueError if the heads of a file are not those of the configuration.

    The keys do not say which blocks the heads read, so the levels must be given if their number is another.
    """
    heads = sum(bool(re.fullmatch(r"image_adapter\.segmentation\.\d+\.0\.weight", name)) for name in state)
    if config.levels is not None and len(config.levels) != heads:
        raise ValueError(
            f"{printable(file)} has heads for {heads} levels, but levels={config.levels} names {len(config.levels)}: "
            f"give the {heads} blocks that the heads read, levels=[…]"
        )
    if config.heads.detection != "class_token" and "image_adapter.detection.0.weight" not in state:
        raise ValueError(
            f"{printable(file)} has no head det_proj: get the file again, or set heads.detection=class_token, which "
            "reads CLIP's own class token instead"
        )


def make_detector(released: Released) -> Detector:
    """Return the detector of released checkpoints; its score is not fitted.

    Raises:
        ValueError: The text stage alone, or weights of other sizes than the backbone's.
    """
    model = make_model(load_backbone(released.config.backbone), released.config)
    # from the untrained model: the fixed temperature and level weights, and without a text stage CLIP's own projection
    untrained = {name: tensor for name, tensor in trained_state(model).items() if "." not in name}
    if not released.text:
        untrained |= {name: tensor for name, tensor in trained_state(model).items() if name.startswith(TEXT)}
    load_trained(model, {**untrained, **released.state}, source=released.files[-1])
    return Detector(model, released.config)


def save_released(released: Released, folder: Path) -> Path:
    """Write a detector, or the text stage alone, which `start` names for training the image stage.

    Raises:
        ValueError: See `make_detector`.
    """
    if released.image:
        return make_detector(released).save_pretrained(folder)
    model = make_model(load_backbone(released.config.backbone), released.config)
    load_trained(model, released.state, source=released.files[0], start=True)
    stored = Stored(
        config=released.config,
        state=released.state,
        fingerprints={"image": fingerprint(model.image_tower), "text": fingerprint(model.text_tower)},
        activation=model.bundle.spec.activation,
        classes={},
        score=UNFITTED,
        border=0.0,
        threshold=None,
        memories={},
    )
    write_detector(folder, stored)
    return folder


def find_files(source: Path, *, epoch: int | None = None) -> tuple[Path | None, Path | None]:
    """Return the files of the text and of the image adapters; None for a stage that is not there.

    Raises:
        ValueError: See `read_released`.
    """
    shown = printable(source)
    if source.is_file():
        if epoch is not None:
            raise ValueError(f"{shown} is a file of one epoch: leave out the epoch {epoch}, or name its folder")
        if source.name == TEXT_FILE:
            return source, None
        if source.name != IMAGE_FILE and not NUMBERED.fullmatch(source.name):
            raise ValueError(f"{shown}: expected {TEXT_FILE}, {IMAGE_FILE} or image_adapter_EPOCH.pth: rename it so")
        text = source.with_name(TEXT_FILE)
        return (text if text.exists() else None), source
    numbered = {int(found[1]) for file in source.glob("image_adapter_*") if (found := NUMBERED.fullmatch(file.name))}
    listed = ", ".join(map(str, sorted(numbered))) or "none"
    if epoch is not None and epoch not in numbered:
        raise ValueError(f"{shown} has no image_adapter_{epoch}.pth: its epochs are {listed}")
    text, image = source / TEXT_FILE, source / (IMAGE_FILE if epoch is None else f"image_adapter_{epoch}.pth")
    if not image.exists() and numbered:
        raise ValueError(f"{shown} has no {IMAGE_FILE}, only epochs {listed}: name one, --epoch {max(numbered)}")
    if not text.exists() and not image.exists():
        raise ValueError(f"{shown}: expected a folder with {TEXT_FILE} and {IMAGE_FILE}, or one of them")
    return (text if text.exists() else None), (image if image.exists() else None)


def _read(file: Path, *, key: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = read_checkpoint(file, key=key)[key]
    return weights


def settle_config(config: str, overrides: Sequence[str], told: Sequence[str], *, source: Path) -> Config:
    """Return the configuration with what the files say.

    Raises:
        ValueError: An override says otherwise.
    """
    settings = load_config(Config, config=config, overrides=[*overrides, *told], package="aaclip")
    asked = load_config(Config, config=config, overrides=[*told, *overrides], package="aaclip")
    for fact in told:
        key, _, _ = fact.partition("=")
        wanted, found = (attrgetter(key)(one) for one in (asked, settings))
        if wanted != found:
            raise ValueError(
                f"{printable(source)} was trained with {fact}, not {wanted}: leave {key} out, which the files tell"
            )
    return settings
