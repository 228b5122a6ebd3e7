"""Saving a bundle to a folder, config.json and weights, and loading it without a network.

A CLIP is written whole, with open_clip's names of tensors and files, so that `local-dir:` and, once the folder is on
the hub, `hf-hub:` of open_clip and of `load_clip` read it too. A SigLIP of transformers is written whole, as
transformers reads it. A dual is written as its heads alone: loading takes its trunks from where they were, and checks
their fingerprints.
"""

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from clip_common.backbones.dual import collect_heads, load_dual
from clip_common.backbones.encoder import Bundle, ImageFeed
from clip_common.backbones.frozen import fingerprint, is_frozen
from clip_common.backbones.hub import CONFIG, WEIGHTS
from clip_common.backbones.open_clip import build_network, make_bundle
from clip_common.backbones.origins import Origin
from clip_common.backbones.preprocess import Preprocess
from clip_common.backbones.siglip import collect_weights, load_siglip
from clip_common.backbones.spec import BackboneError
from clip_common.backbones.vision_models import make_image_processor
from clip_common.tensors import check_fit, read_tensors, write_tensors

TEXT_CONFIG = "text_config"
"""Subfolder with the configuration of a text tower that is a transformers model."""
MODEL = "model.safetensors"
STORED = {"open_clip": (WEIGHTS[0], MODEL), "siglip": (MODEL,), "dual": (MODEL,)}
"""Names of a bundle's weights by kind, the one that is written first; the others are those of earlier versions."""
BUNDLE_FORMAT = 2
"""Version of what `save_bundle` writes."""
KEYS = ("name", "pretrained", "fingerprint", "preprocess", "train_preprocess")
"""Keys of config.json that `load_bundle` reads, besides the kind, the version and what rebuilds the towers."""


def save_bundle(bundle: Bundle, folder: Path, *, marker: Mapping[str, Any] | None = None) -> None:
    """Write `bundle` with its current weights; files take their names only when all are complete.

    Args:
        bundle: What to write.
        folder: Made if it is missing.
        marker: More keys of config.json: those of the package whose model this is (`clip_common.runs.opening`).

    Raises:
        BackboneError: A full disk, or a dual with an unfrozen or trained trunk, which its heads alone cannot restore.
    """
    spec, config = bundle.spec, dict(bundle.spec.config)
    if spec.kind == "dual":
        if not (is_frozen(bundle.image_tower.trunk) and is_frozen(bundle.text_tower.trunk)):
            raise BackboneError(f"{spec.name}: a trunk was unfrozen, but a dual is saved by its heads alone")
        if bundle.trunks != (fingerprint(bundle.image_tower.trunk), fingerprint(bundle.text_tower.trunk)):
            raise BackboneError(
                f"{spec.name}: a trunk was trained since it was loaded, but a dual is saved by its heads"
            )
        state = collect_heads(bundle.image_tower, bundle.text_tower)
    elif spec.kind == "siglip":
        state = collect_weights(bundle)
    else:
        config.pop("init_logit_bias", None)
        if bundle.logit_bias is not None:
            config["init_logit_bias"] = bundle.logit_bias
        state = bundle.image_tower.trunk.state_dict() | bundle.text_tower.trunk.state_dict()
    if spec.kind != "siglip":
        state["logit_scale"] = torch.tensor(bundle.logit_scale)
        if bundle.logit_bias is not None:
            state["logit_bias"] = torch.tensor(bundle.logit_bias)
    content = {
        **(config | {"has_bias": bundle.logit_bias is not None} if spec.kind == "siglip" else {"model": config}),
        **(marker or {}),
        "bundle_format": BUNDLE_FORMAT,
        "kind": spec.kind,
        "name": spec.name,
        "pretrained": spec.pretrained,
        "fingerprint": fingerprint(state),
        "preprocess": asdict(bundle.preprocess),
        "train_preprocess": asdict(bundle.train_preprocess),
    }
    draft = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        write_tensors(draft / STORED[spec.kind][0], state)
        if spec.kind == "open_clip":
            _write_open_clip_config(bundle, config, draft)
        if spec.kind == "siglip":
            make_image_processor(bundle.image.feed).save_pretrained(draft)
        if spec.kind != "dual":
            bundle.tokenizer.save(draft)
        _write_json(draft / "config.json", content)
        _move(draft, folder)
        for name in {name for names in STORED.values() for name in names} - {STORED[spec.kind][0]}:
            (folder / name).unlink(missing_ok=True)  # open_clip would load the weights of a former model
    except OSError as error:
        raise BackboneError(f"{folder}: the model could not be written: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_bundle(folder: Path) -> Bundle:
    """Load a bundle that `save_bundle` wrote.

    Raises:
        BackboneError: One line: files that are absent, damaged or do not belong together, or a trunk of a dual that is
            gone or has other weights.
    """
    content = _read_config(folder / "config.json")
    bundle = {"dual": _load_dual, "siglip": _load_siglip, "open_clip": _load_clip}[content["kind"]](content, folder)
    feed = ImageFeed(_read_preprocess(content["preprocess"]))
    train_preprocess = _read_preprocess(content["train_preprocess"])
    return replace(bundle, image=replace(bundle.image, feed=feed), train_preprocess=train_preprocess)


def _load_clip(content: Mapping[str, Any], folder: Path) -> Bundle:
    config = content["model"]
    if (folder / TEXT_CONFIG).is_dir():
        config["text_cfg"]["hf_model_name"] = str(folder / TEXT_CONFIG)
    origin = Origin(
        content["name"], content["pretrained"], config, weights=_find_weights(folder, content), folder=folder.absolute()
    )
    network, config = build_network(origin, image_size=None, seed=0)
    bundle = make_bundle(network, replace(origin, config=config))
    _check_written_together(bundle.spec.fingerprint, content, folder)
    return bundle


def _load_siglip(content: Mapping[str, Any], folder: Path) -> Bundle:
    bundle = load_siglip(folder, name=content["name"])
    _check_written_together(bundle.spec.fingerprint, content, folder)
    return bundle if content["has_bias"] else replace(bundle, logit_bias=None)


def _load_dual(content: Mapping[str, Any], folder: Path) -> Bundle:
    from clip_common.backbones.weights import backbone_errors

    given = dict(content["model"])
    expected = {side: given.pop(f"{side}_fingerprint") for side in ("vision", "text")}
    try:
        bundle = load_dual(**given)
    except BackboneError as error:
        raise BackboneError(f"{folder} needs its trunks where its config.json says they are: {error}") from error
    for side, value in expected.items():
        if bundle.spec.config[f"{side}_fingerprint"] != value:
            raise BackboneError(
                f"{given[side]} does not hold the weights that {folder} was trained on (fingerprint {value[:12]}…): "
                f"put them back, or correct {side!r} in {folder / 'config.json'}"
            )
    file = _find_weights(folder, content)
    with backbone_errors():
        state = read_tensors(file)
        _check_written_together(fingerprint(state), content, folder)
        scale, bias = state.pop("logit_scale").item(), state.pop("logit_bias", None)
        check_fit(collect_heads(bundle.image_tower, bundle.text_tower), state, source=file, called=content["name"])
    for side, tower in (("image", bundle.image_tower), ("text", bundle.text_tower)):
        own = {name.removeprefix(f"{side}_head."): t for name, t in state.items() if name.startswith(f"{side}_head.")}
        tower.head.load_state_dict(own)
    return replace(bundle, logit_scale=scale, logit_bias=None if bias is None else bias.item())


def _find_weights(folder: Path, content: Mapping[str, Any]) -> Path:
    """Return the file of weights: the first that exists of the names for this kind, else the name that is written."""
    files = [folder / name for name in STORED[content["kind"]]]
    return next(filter(Path.is_file, files), files[0])


def _check_written_together(weights: str, content: Mapping[str, Any], folder: Path) -> None:
    if weights != content["fingerprint"]:
        name = _find_weights(folder, content).name
        raise BackboneError(
            f"{folder}: config.json was not written with this {name} (its fingerprint is {weights[:12]}…); "
            "save the model again"
        )


def _write_open_clip_config(bundle: Bundle, config: dict[str, Any], folder: Path) -> None:
    preprocess = bundle.preprocess
    shown = {"interpolation": preprocess.interpolation, "resize_mode": preprocess.resize_mode}
    statistics = {"mean": preprocess.mean, "std": preprocess.std, "fill_color": preprocess.fill}
    _write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": statistics | shown})
    if "hf_model_name" in config["text_cfg"]:
        text: Any = bundle.text_tower.trunk.text
        text.transformer.config.save_pretrained(folder / TEXT_CONFIG)


def _read_preprocess(settings: Mapping[str, Any]) -> Preprocess:
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return Preprocess(**given)


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise BackboneError(f"{file.parent} holds no saved model: there is no {file.name} in it")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind, version = content["kind"], content.get("bundle_format", 1)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BackboneError(f"{file} is not the configuration of a saved model ({error!r})") from error
    if version == BUNDLE_FORMAT and kind in STORED:
        needed = (*KEYS, *(("vision_config", "has_bias") if kind == "siglip" else ("model",)))
        if absent := [key for key in needed if key not in content]:
            raise BackboneError(f"{file} is damaged: it has no {', '.join(absent)}: copy the folder again")
        return content
    if version == 1:
        raise BackboneError(f"{file.parent} was saved by an older version: train it again, or save it again")
    raise BackboneError(
        f"{file}: expected bundle_format {BUNDLE_FORMAT} of a known kind, got {version!r} of {kind!r}: "
        "save the model with this version"
    )


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _move(draft: Path, folder: Path) -> None:
    """Move the files of `draft` into `folder` once all of them are on the disk."""
    files = sorted(file for file in draft.rglob("*") if file.is_file())
    for file in files:
        with file.open("rb") as written:
            os.fsync(written.fileno())
    for file in files:
        place = folder / file.relative_to(draft)
        place.parent.mkdir(exist_ok=True)
        file.replace(place)
