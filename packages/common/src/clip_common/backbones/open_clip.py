"""`load_clip`: a CLIP by name, from the hub, a folder or a file of weights, or from scratch, as a bundle."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from clip_common.backbones.encoder import Bundle, ImageEncoder, ImageFeed, TextEncoder, TextFeed
from clip_common.backbones.frozen import fingerprint
from clip_common.backbones.huggingface import one_line, without_code
from clip_common.backbones.origins import Origin, check_unused, find_origin
from clip_common.backbones.preprocess import TRAIN_CROP, Preprocess
from clip_common.backbones.siglip import load_siglip
from clip_common.backbones.spec import BackboneError, BundleSpec, ImageSpec, TextSpec
from clip_common.backbones.transformers_clip import read_config
from clip_common.backbones.vision_models import read_preprocess as read_processor

if TYPE_CHECKING:
    from open_clip.model import CustomTextCLIP

ACTIVATIONS = ("gelu", "quick_gelu")


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
            `hf-hub:org/name` (or `org/name`) and `local-dir:/folder` in open_clip's files or as a CLIPModel or
            SiglipModel of transformers, a file of weights (with `model`), or any label (with `model_config`).
        pretrained: Tag of the architecture's weights, a file of them, or `random`.
        model: Architecture of the weights, if `name` is a file.
        model_config: An open_clip model configuration (embed_dim, vision_cfg, text_cfg): your own CLIP, from scratch
            unless `pretrained` is a file.
        image_size: Pixels a side; a size other than that of the weights interpolates the position embeddings
            (bicubic, antialiased, class token kept).
        activation: `gelu` or `quick_gelu`. None: the one that the weights were trained with, if open_clip knows
            (OpenAI's: quick_gelu), else that of the architecture. Of files of weights only TorchScript archives say.
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
    if origin.transformers == "siglip" and origin.folder is not None:
        check_unused(name, activation=activation)
        return load_siglip(origin.folder, name=name, image_size=image_size, image=image, text=text)
    if activation is not None:
        origin.config["quick_gelu"] = activation == "quick_gelu"
    network, config = build_network(origin, image_size=image_size, seed=seed, image=image, text=text)
    return make_bundle(network, replace(origin, config=config))


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
    if origin.transformers is not None and origin.folder is not None:
        preprocess = read_processor(origin.folder, read_config(origin.folder).vision_config, image_size=size)
    else:
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


def _resize_timm(network: "CustomTextCLIP", image_size: int) -> None:
    own = getattr(getattr(network.visual.trunk, "patch_embed", None), "img_size", None)
    if own is None or tuple(own) != (image_size, image_size):
        network.visual.set_input_size(image_size)


def _check_square(size: int | Sequence[int], *, name: str) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise BackboneError(f"{name} takes images of {height}x{width}: only square ones are supported")
    return int(height)
