"""Saved vision-language models: one folder that holds all that was trained, and names what was not.

    config.json          marker: configuration, image encoder and decoder with their fingerprints
    model.safetensors    projector, adapters, recursion, and the frozen aligned head; of a TRM decoder all weights
    decoder/             the language model with its adapters merged, if `edgeglass merge` wrote the folder

The image encoder and the language model are loaded from their own folders or from the hub's cache, and refused if their
weights are others: a projector is of no use to another model, nor without the adapters that were trained with it.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clip_common.backbones.language import LanguageModel
from clip_common.config import load_config
from clip_common.runs.opening import MARKER, find_model, read_marker, write_marker
from clip_common.tensors import check_fingerprint, check_fit, read_tensors, write_tensors
from edgeglass.config import VisionConfig, VlmConfig
from edgeglass.models.vlm.prefix import VisionPrefix
from edgeglass.models.vlm.qwen_vlm import QwenVLM
from edgeglass.vlm.building import Sight, build_vlm, load_decoder, make_prefix, place_decoder

WEIGHTS = "model.safetensors"
FORMAT = 1
"""Version of the format that `save_vlm` writes."""
DECODER = "decoder"
"""Folder of a merged language model inside the model's folder."""
KIND = "vlm"
VERB = "vlm"
"""The command that trains such models."""


def save_vlm(folder: Path, model: QwenVLM, config: VlmConfig, *, sight: Sight, language: LanguageModel) -> None:
    """Write a model; its marker last, so that a killed writer leaves no model.

    Args:
        folder: Made if missing; an earlier model in it is replaced.
        model: On any device.
        config: What the model was built from.
        sight: Its image side.
        language: Its language model.

    Raises:
        OSError: A full disk, or a folder that cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    write_tensors(folder / WEIGHTS, collect_weights(model))
    content = {
        "kind": KIND,
        "config": asdict(place_decoder(config)),
        "vision": {
            "config": asdict(sight.vision),
            "width": sight.width,
            "fingerprint": model.prefix.encoder.spec.fingerprint,
        },
        "decoder": {"name": language.spec.name, "fingerprint": language.spec.fingerprint},
    }
    write_marker(folder, content, package="edgeglass", format=FORMAT)


def load_vlm(
    source: str | Path, *, quantization: str | None = None, dtype: str | None = None
) -> tuple[QwenVLM, VlmConfig, Sight, LanguageModel, Path]:
    """Load what `save_vlm` wrote: the model in eval mode, its configuration, image side, language model, and folder.

    Args:
        source: A run folder, or the folder of a saved model.
        quantization: `none`, `4bit` or `8bit` of the language model; None: as it was trained.
        dtype: `float32` or `bfloat16` of the language model; None: as it was trained.

    Raises:
        ValueError: One line: neither of these, a run without a model yet, a damaged or older model, an image encoder or
            a language model that was moved or has other weights, or weights of another model.
    """
    folder, config, sight, fingerprints = _open_saved(source)
    given = {"quantization": quantization, "dtype": dtype}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if (folder / DECODER).is_dir():
        chosen["name"] = str(folder / DECODER)
    config = replace(config, decoder=replace(config.decoder, **chosen))
    try:
        prefix = make_prefix(sight, merge=config.prefix.merge)
        language = load_decoder(config)
    except ValueError as error:
        raise ValueError(f"{folder} needs the models that it was trained with: {error}") from error
    _check_parts(prefix, language, fingerprints, source=folder)
    model = build_vlm(config, prefix=prefix, language=language)
    weights = read_tensors(folder / WEIGHTS)
    check_fit(collect_weights(model), weights, source=folder / WEIGHTS, called="the model of its configuration")
    model.load_state_dict(weights, strict=False)
    return model.eval(), config, sight, language, folder


def start_from(model: QwenVLM, source: str | Path, *, decoder: LanguageModel) -> None:
    """Fill projector, recursion and, if it has them, adapters from a model of an earlier phase.

    Raises:
        ValueError: One line: no such model, one of another language model or image encoder, or of other sizes.
    """
    folder, _, _, fingerprints = _open_saved(source)
    _check_parts(model.prefix, decoder, fingerprints, source=folder)
    weights = read_tensors(folder / WEIGHTS)
    own = collect_weights(model)
    new = {name for name in own.keys() - weights.keys() if "lora_" in name}  # drawn here, after a projector phase
    kept = {name: tensor for name, tensor in own.items() if name not in new}
    check_fit(kept, weights, source=folder / WEIGHTS, called="the model of this configuration")
    model.load_state_dict(weights, strict=False)


def collect_weights(model: QwenVLM) -> dict[str, Tensor]:
    """Return all weights that the folders of the image encoder and of the language model do not hold, by name."""
    trained = {name for name, parameter in model.decoder.named_parameters() if parameter.requires_grad}
    kept = ("vision_proj.", "recursion.", "prefix.head.")
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(kept) or name.removeprefix("decoder.") in trained
    }


def _check_parts(
    prefix: VisionPrefix, language: LanguageModel, fingerprints: Mapping[str, str], *, source: Path
) -> None:
    """Raise ValueError unless image encoder and language model are those that a model was saved with."""
    for part, what, spec in (
        ("vision", "image encoder", prefix.encoder.spec),
        ("decoder", "language model", language.spec),
    ):
        check_fingerprint(spec.fingerprint, fingerprints[part], source=source, what=f"the {what} {spec.name}")


def _open_saved(source: str | Path) -> tuple[Path, VlmConfig, Sight, dict[str, str]]:
    """Return the folder of a saved model, its configuration, its image side, and the fingerprints of its parts."""
    folder = find_model(source, package="edgeglass", format=FORMAT, verb=VERB)
    content = read_marker(folder, package="edgeglass", format=FORMAT, verb=VERB)
    if content.get("kind") != KIND:
        raise ValueError(f"{folder} is an alignment model, which answers no questions: give a run of `edgeglass vlm`")
    try:
        config = load_config(VlmConfig, config=content["config"])
        vision = content["vision"]
        sight = Sight(load_config(VisionConfig, config=vision["config"]), vision["width"])
        fingerprints = {
            "vision": str(vision["fingerprint"]),
            "decoder": str(content["decoder"]["fingerprint"]),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{folder / MARKER} is damaged ({reason}): copy the folder again") from error
    return folder, config, sight, fingerprints
