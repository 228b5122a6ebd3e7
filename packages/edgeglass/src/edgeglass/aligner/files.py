"""Saved alignment models: one folder with the configuration, the encoders' names and fingerprints, and the weights.

    config.json          marker: configuration, fingerprints of the encoders, temperatures
    model.safetensors    every weight that is not a frozen encoder's: heads, fusion, means, adapters, trained encoders
    calibration.json     thresholds of "nothing here", if `edgeglass calibrate` fitted them

A frozen encoder is loaded from its own folder or from the hub's cache, and refused if its weights are others.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from clip_common.config import load_config
from clip_common.runs.opening import MARKER, find_model, read_marker, write_marker
from clip_common.tensors import check_fingerprint, check_fit, read_tensors, write_tensors
from edgeglass.config import Config, VisionConfig
from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.models.building import build_model

WEIGHTS = "model.safetensors"
FORMAT = 1
"""Version of the format that `save_model` writes."""


def save_model(
    folder: Path, model: MultimodalAlignmentModel, config: Config, *, temperatures: Mapping[str, float]
) -> None:
    """Write a model; its marker last, so that a killed writer leaves no model.

    Args:
        folder: Made if missing; an earlier model in it is replaced.
        model: On any device.
        config: What the model was built from.
        temperatures: Of each pair, by its name.

    Raises:
        OSError: A full disk, or a folder that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    write_tensors(folder / WEIGHTS, collect_weights(model))
    content = {
        "config": asdict(place_encoders(config)),
        "encoders": {
            modality: {
                "name": model.encoder_of(modality).encoder.spec.name,
                "fingerprint": model.encoder_of(modality).encoder.spec.fingerprint,
            }
            for modality in model.modalities
        },
        "temperatures": dict(temperatures),
    }
    write_marker(folder, content, package="edgeglass", format=FORMAT)


def load_model(source: str | Path) -> tuple[MultimodalAlignmentModel, Config, dict[str, float], Path]:
    """Load what `save_model` wrote: the model in eval mode and without a loss, its configuration, temperatures, folder.

    Args:
        source: A run folder, or the folder of a saved model.

    Raises:
        ValueError: One line: neither of these, a run without a model yet, a damaged or older model, an encoder that was
            moved or has other weights, or weights of another model.
    """
    folder = find_model(source, package="edgeglass", format=FORMAT, verb="align")
    marker = read_marker(folder, package="edgeglass", format=FORMAT, verb="align")
    if "encoders" not in marker and "decoder" in marker:
        raise ValueError(f"{folder} is a model that answers questions, not an alignment: give a run of edgeglass align")
    try:
        if not isinstance(marker["config"], dict):
            raise TypeError("its config is not an object")
        config = load_config(Config, config=marker["config"])
        fingerprints = {modality: str(one["fingerprint"]) for modality, one in marker["encoders"].items()}
        temperatures = {name: float(value) for name, value in marker["temperatures"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{folder / MARKER} is damaged ({reason}): copy the folder again") from error
    try:
        model = build_model(config)
    except ValueError as error:
        raise ValueError(f"{folder} needs the encoders that it was aligned with: {error}") from error
    for modality in model.modalities:
        spec = model.encoder_of(modality).encoder.spec
        what = f"the {modality} encoder {spec.name}"
        check_fingerprint(spec.fingerprint, fingerprints.get(modality, "none"), source=folder, what=what)
    weights = read_tensors(folder / WEIGHTS)
    check_fit(collect_weights(model), weights, source=folder / WEIGHTS, called="the model of its configuration")
    model.load_state_dict(weights, strict=False)
    return model.eval(), config, temperatures, folder


def collect_weights(model: MultimodalAlignmentModel) -> dict[str, Tensor]:
    """Return all weights that the folders of the encoders do not hold, by name; the loss's are left out."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("loss.")}
    for modality in model.modalities:
        trunk = model.encoder_of(modality).trunk
        parameters: dict[str, nn.Parameter] = dict(trunk.named_parameters(remove_duplicate=False))
        trains = any(parameter.requires_grad for parameter in parameters.values())
        for name in trunk.state_dict():
            # buffers of a trunk that trains may have changed, such as the statistics of a batch norm
            if not (trains if name not in parameters else parameters[name].requires_grad):
                del state[f"encoders.{modality}.trunk.{name}"]
    return state


def place_encoders(config: Config) -> Config:
    """Return the configuration with full paths of the encoders' folders and files."""
    encoders = config.encoders
    vision = place_encoder(encoders.vision)
    text = replace(encoders.text, name=_place(encoders.text.name))
    audio = replace(encoders.audio, name=_place(encoders.audio.name))
    return replace(config, encoders=replace(encoders, vision=vision, text=text, audio=audio))


def place_encoder(vision: VisionConfig) -> VisionConfig:
    """Return the settings of an image encoder with the full path of its folder or file."""
    return replace(vision, name=_place(vision.name), pretrained=_place(vision.pretrained))


def _place(name: str | None) -> str | None:
    if name is None:
        return None
    prefix = "local-dir:" if name.startswith("local-dir:") else ""
    path = Path(name.removeprefix(prefix))
    return f"{prefix}{path.absolute()}" if path.exists() else name


def read_temperatures(model: MultimodalAlignmentModel) -> dict[str, float]:
    """Return the temperature of each pair of a model's loss; none for a model without a loss."""
    if model.loss is None:
        return {}
    with torch.no_grad():
        scales: dict[str, Tensor] = model.loss.scale_of_pairs()  # type: ignore[operator]
        return {name: 1 / float(scale) for name, scale in scales.items()}
