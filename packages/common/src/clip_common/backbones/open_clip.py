"""`load_clip`: a CLIP by name, from the hub, a folder or a file of weights, or from scratch, as a bundle."""

import copy
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clip_common.backbones.encoder import Bundle, ImageEncoder, ImageFeed, TextEncoder, TextFeed
from clip_common.backbones.frozen import fingerprint
from clip_common.backbones.huggingface import CONFIG, WEIGHTS, fetch, fetch_tag, one_line, without_code
from clip_common.backbones.preprocess import Preprocess
from clip_common.backbones.shipped import find_shipped
from clip_common.backbones.spec import BackboneError, BundleSpec, ImageSpec, TextSpec
from clip_common.backbones.tokenizers import ClipTokenizer

if TYPE_CHECKING:
    from open_clip.model import CustomTextCLIP

TRAIN_CROP = (0.9, 1.0)
"""Share of the area that a training crop keeps: open_clip's default."""
ACTIVATIONS = ("gelu", "quick_gelu")
SECTIONS = (
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "custom_text",
    "multimodal_cfg",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
)


@dataclass
class Origin:
    """Where a CLIP comes from: its configuration, weights and tokenizer, before it is built.

    Attributes:
        name: As the user asked for it.
        pretrained: Tag or file of the weights; `random`; None if the name says everything.
        config: open_clip model configuration.
        preprocess: Statistics and resize as open_clip names them.
        weights: File; None for random weights.
        folder: With the files of a transformers tokenizer that came with the weights.
        wanted: Name to prefetch the tokenizer by; empty: its own repository.
    """

    name: str
    pretrained: str | None
    config: dict[str, Any]
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    folder: Path | None = None
    wanted: str = ""

    def load_tokenizer(self) -> ClipTokenizer:
        """Load the tokenizer of the text tower."""
        return ClipTokenizer(self.config["text_cfg"], folder=self.folder, wanted=self.wanted)


def load_clip(
    name: str,
    *,
    pretrained: str | None = None,
    model: str | None = None,
    model_config: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    activation: str | None = None,
    seed: int = 0,
    image: bool = True,
    text: bool = True,
) -> Bundle:
    """Load a CLIP, in eval mode.

    Args:
        name: `tiny` (the package's own, no network), an open_clip architecture (`ViT-L-14-336`, with `pretrained`),
            `hf-hub:org/name`, `local-dir:/folder`, a file of weights (with `model`), or any label (with
            `model_config`).
        pretrained: Tag of the architecture's weights, a file of them, or `random`.
        model: Architecture of the weights, if `name` is a file.
        model_config: An open_clip model configuration (embed_dim, vision_cfg, text_cfg): your own CLIP, from scratch
            unless `pretrained` is a file.
        image_size: Pixels a side; a size other than that of the weights interpolates the position embeddings
            (bicubic, antialiased, class token kept).
        activation: `gelu` or `quick_gelu`. None: the one that the weights were trained with, if open_clip knows
            (OpenAI's: quick_gelu), else that of the architecture. A file of weights does not say.
        seed: Draws random weights.
        image: False leaves the image tower without weights, on the meta device, and the fingerprint empty: enough to
            embed texts alone.
        text: The same of the text tower: enough to embed images alone, or to compare them with texts embedded before.

    Raises:
        BackboneError: One line: an unknown name or tag with the nearest known, no network and nothing cached, a file
            that is absent, damaged or of another architecture, a configuration that cannot be built.

    Example:
        bundle = load_clip("ViT-B-32", pretrained="laion2b_s34b_b79k")
        image = bundle.image_tower(bundle.preprocess(picture)[None]).pooled
        text = bundle.text_tower(bundle.tokenizer(["a dog in the snow"]))
    """
    if activation not in (None, *ACTIVATIONS):
        raise BackboneError(f"activation {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    origin = find_origin(name, pretrained=pretrained, model=model, model_config=model_config)
    if activation is not None:
        origin.config["quick_gelu"] = activation == "quick_gelu"
    network, config = build_network(origin, image_size=image_size, seed=seed, image=image, text=text)
    return make_bundle(network, replace(origin, config=config))


def find_origin(
    name: str,
    *,
    pretrained: str | None = None,
    model: str | None = None,
    model_config: Mapping[str, Any] | None = None,
) -> Origin:
    """Resolve the arguments of `load_clip`: download weights, but build nothing."""
    if name == "tiny":
        check_unused(name, pretrained=pretrained, model=model, model_config=model_config)
        return _find_in_folder(find_shipped("clip"), name=name)
    if model_config is not None:
        check_unused("model_config", model=model)
        weights = None if pretrained in (None, "random") else _check_file(pretrained)
        config = _check_config(model_config)
        return Origin(name, "random" if weights is None else pretrained, config, weights=weights)
    if name.startswith(("local-dir:", "hf-hub:")):
        check_unused(name, pretrained=pretrained, model=model)
    if name.startswith("local-dir:"):
        return _find_in_folder(Path(name.removeprefix("local-dir:")), name=name)
    if name.startswith("hf-hub:"):
        return _find_on_hub(name.removeprefix("hf-hub:"), name=name)
    if model is not None:
        check_unused(f"model={model!r}", pretrained=pretrained)
        return Origin(model, name, read_architecture(model), weights=_check_file(name), wanted=f"{model} random")
    if Path(name).is_dir():
        raise BackboneError(f"{name} is a folder: write local-dir:{name}")
    if Path(name).is_file():
        raise BackboneError(f"{name} is a file of weights: name its architecture, model='ViT-B-32'")
    return _find_tag(name, pretrained)


def is_architecture(name: str) -> bool:
    """Return whether open_clip has a model configuration of this name."""
    import open_clip

    return open_clip.get_model_config(name.replace("/", "-")) is not None


def read_architecture(name: str) -> dict[str, Any]:
    """Return open_clip's model configuration of this name.

    Raises:
        BackboneError: An unknown name; the line gives the nearest known ones.
    """
    import open_clip

    config = open_clip.get_model_config(name.replace("/", "-"))
    if config is None:
        raise BackboneError(f"unknown model {name!r}; {_suggest(name, open_clip.list_models())}")
    return config


def _find_tag(name: str, pretrained: str | None) -> Origin:
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    name = name.replace("/", "-")
    config = read_architecture(name)
    tags = list_pretrained_tags_by_model(name)
    if pretrained is None:
        known = ", ".join(tags) or "none"
        raise BackboneError(f"{name} needs pretrained=: one of its tags ({known}), a file of weights, or 'random'")
    if pretrained == "random":
        return Origin(name, pretrained, config, wanted=f"{name} random")
    tag: dict[str, Any] = get_pretrained_cfg(name, pretrained)
    if not tag:
        if Path(pretrained).is_file():
            return Origin(name, pretrained, config, weights=Path(pretrained), wanted=f"{name} random")
        raise BackboneError(f"{name} has no weights {pretrained!r}; {_suggest(pretrained, [*tags, 'random'])}")
    if tag.get("quick_gelu"):
        config["quick_gelu"] = True
    weights = fetch_tag(name, pretrained, tag)
    return Origin(name, pretrained, config, preprocess=tag, weights=weights, wanted=f"{name} {pretrained}")


def _find_on_hub(repository: str, *, name: str) -> Origin:
    try:
        config, preprocess = _read_config(fetch(repository, (CONFIG,), wanted=name))
        weights = fetch(repository, WEIGHTS, wanted=name)
    except FileNotFoundError as error:
        raise BackboneError(f"{name} is not an open_clip model: {error}") from error
    return Origin(name, None, config, preprocess=preprocess, weights=weights, wanted=name)


def _find_in_folder(folder: Path, *, name: str) -> Origin:
    file = folder / CONFIG
    if not file.is_file():
        raise BackboneError(f"{name}: expected a folder with {CONFIG} and weights in it; there is no {file}")
    config, preprocess = _read_config(file)
    candidates = [folder / name for name in WEIGHTS]
    found = [*filter(Path.is_file, candidates), *sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.pt"))]
    if not found:
        raise BackboneError(f"{folder} has no weights: expected one of {', '.join(file.name for file in candidates)}")
    return Origin(name, None, config, preprocess=preprocess, weights=found[0], folder=folder.absolute())


def _read_config(file: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the model configuration and the preprocessing in an open_clip_config.json."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return _check_config(content["model_cfg"]), content.get("preprocess_cfg", {})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BackboneError(f"{file} is not an open_clip configuration with a model_cfg ({error!r})") from error


def build_network(
    origin: Origin, *, image_size: int | None, seed: int, image: bool = True, text: bool = True
) -> "tuple[CustomTextCLIP, dict[str, Any]]":
    """Build the network with its weights, and return it with the configuration that rebuilds it.

    Args:
        origin: What to build.
        image_size, seed, image, text: As for `load_clip`.
    """
    from clip_common.backbones.weights import construct_network, put_weights

    config = copy.deepcopy(origin.config)
    vision = config["vision_cfg"]
    timm = "timm_model_name" in vision
    if image_size is not None and not timm:
        vision["image_size"] = image_size
    if timm:
        vision["timm_model_pretrained"] = False
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"]["hf_model_pretrained"] = False
    # one class for every model, with a separate text tower (open_clip's CLIP unpacks it, its CoCa adds a decoder)
    for key in ("multimodal_cfg", "custom_text", "nonscalar_logit_scale"):
        config.pop(key, None)
    try:
        with without_code(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # random weights of the text tower are drawn after those of the image tower
            network = construct_network(config, image=image or origin.weights is None, text=text)
    except (AssertionError, TypeError, ValueError, RuntimeError, ZeroDivisionError, OSError) as error:
        raise BackboneError(f"{origin.name}: this model configuration cannot be built: {one_line(error)}") from error
    config["custom_text"] = True
    if not text:
        network.text.to("meta")
    if timm:
        _resize_timm(network, vision["image_size"])
    if origin.weights is not None:
        put_weights(network, origin.weights, name=origin.name, image=image, text=text)
    if timm and image_size is not None:
        _resize_timm(network, image_size)
        vision["image_size"] = image_size
    if not image:
        network.visual.to("meta")
    return network, config


def make_bundle(network: "CustomTextCLIP", origin: Origin) -> Bundle:
    """Return the bundle of a built network."""
    from clip_common.backbones.open_clip_trunks import make_towers

    image_tower, text_tower = make_towers(network.eval())
    image_trunk = image_tower.trunk
    size = _check_square(network.visual.image_size, name=origin.name)
    cells = size // image_trunk.patch_size
    if cells == 0:
        raise BackboneError(f"image_size={size} is smaller than one patch of {image_trunk.patch_size} pixels")
    weights = "" if any(weight.is_meta for weight in network.parameters()) else fingerprint(network)
    embed_dim = origin.config["embed_dim"]
    image_spec = ImageSpec(
        name=origin.name,
        width=image_trunk.width,
        depth=len(image_trunk.blocks),
        embed_dim=embed_dim,
        fingerprint=weights,
        image_size=size,
        patch_size=image_trunk.patch_size,
        grid=(cells, cells),
    )
    text_spec = TextSpec(
        name=origin.name,
        width=text_tower.trunk.width,
        depth=text_tower.trunk.depth,
        embed_dim=embed_dim,
        fingerprint=weights,
        context_length=origin.config["text_cfg"].get("context_length", 77),
    )
    spec = BundleSpec(
        kind="open_clip",
        name=origin.name,
        pretrained=origin.pretrained,
        activation=ACTIVATIONS[bool(origin.config.get("quick_gelu"))],
        fingerprint=weights,
        config=origin.config,
    )
    preprocess = read_preprocess(origin.preprocess, size=size)
    return Bundle(
        image=ImageEncoder(image_tower, ImageFeed(preprocess), image_spec),
        text=TextEncoder(text_tower, TextFeed(origin.load_tokenizer()), text_spec),
        train_preprocess=replace(preprocess, crop_scale=TRAIN_CROP),
        spec=spec,
        logit_scale=network.logit_scale.item(),
        logit_bias=None if network.logit_bias is None else network.logit_bias.item(),
    )


def read_preprocess(settings: Mapping[str, Any], *, size: int) -> Preprocess:
    """Return open_clip's preprocess configuration as a `Preprocess`, with open_clip's defaults for missing keys."""
    names = {
        "mean": "mean",
        "std": "std",
        "interpolation": "interpolation",
        "resize_mode": "resize_mode",
        "fill_color": "fill",
    }
    given = {ours: settings[theirs] for theirs, ours in names.items() if settings.get(theirs) is not None}
    for statistic in ("mean", "std"):
        if statistic in given:
            given[statistic] = tuple(given[statistic])
    if given.get("interpolation") == "random":  # only meant for training
        del given["interpolation"]
    return Preprocess(size=size, **given)


def _check_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a model configuration; raise BackboneError for a key that open_clip does not know."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    own = copy.deepcopy(dict(config))
    for section in ("embed_dim", "vision_cfg", "text_cfg"):
        if section not in own:
            raise BackboneError(f"model_config has no {section}: expected embed_dim, vision_cfg and text_cfg")
    known = {"": SECTIONS} | {
        f"{section}.": [field.name for field in fields(schema)]
        for section, schema in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg))
    }
    for place, keys in known.items():
        for key in own[place.rstrip(".")] if place else own:
            if key not in keys:
                raise BackboneError(f"model_config has an unknown key {place}{key}; {_suggest(key, keys)}")
    return own


def _resize_timm(network: "CustomTextCLIP", image_size: int) -> None:
    own = getattr(getattr(network.visual.trunk, "patch_embed", None), "img_size", None)
    if own is None or tuple(own) != (image_size, image_size):
        network.visual.set_input_size(image_size)


def check_unused(name: str, **arguments: object) -> None:
    """Raise BackboneError for an argument that has no use beside `name`."""
    for argument, value in arguments.items():
        if value is not None:
            raise BackboneError(f"{name} with {argument}={value!r} is of no use: leave {argument} out")


def _check_file(name: str) -> Path:
    if not Path(name).is_file():
        raise BackboneError(f"{name}: no such file of weights")
    return Path(name)


def _check_square(size: int | Sequence[int], *, name: str) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise BackboneError(f"{name} takes images of {height}x{width}: only square ones are supported")
    return int(height)


def _suggest(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"
