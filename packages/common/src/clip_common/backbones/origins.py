"""Where a CLIP comes from: names, tags, folders and files to a configuration, weights and a tokenizer.

Nothing is built here; weights may be downloaded.
"""

import copy
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from clip_common.backbones.hub import (
    CONFIG,
    WEIGHTS,
    fetch,
    fetch_folder,
    fetch_tag,
    find_cached_model,
    find_missing_of_tokenizer,
)
from clip_common.backbones.huggingface import load_tokenizer
from clip_common.backbones.shipped import find_shipped
from clip_common.backbones.siglip import load_siglip_tokenizer
from clip_common.backbones.spec import BackboneError
from clip_common.backbones.tokenizers import ClipTokenizer, MissingTokenizer, Tokenizer
from clip_common.backbones.transformers_clip import KINDS, convert_config, find_weights, read_config, read_kind
from clip_common.tensors import read_code

QUICK_GELU = "1.702"
"""Factor that tells QuickGELU in TorchScript code."""
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
        transformers: Kind of the transformers model in `folder`: a CLIP, whose `config` is converted, or a SigLIP,
            which keeps its own `config` and modules. None: a model in open_clip's files.
    """

    name: str
    pretrained: str | None
    config: dict[str, Any]
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None
    folder: Path | None = None
    wanted: str = ""
    transformers: Literal["clip", "siglip"] | None = None

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer of the text tower; one that refuses texts if a transformers model came without any."""
        text = self.config.get("text_cfg", {})
        if self.transformers is not None and self.folder is not None:
            if self.transformers == "siglip":
                return load_siglip_tokenizer(self.folder, self.config)
            if "hf_tokenizer_name" in text and find_missing_of_tokenizer(self.folder) is not None:
                return MissingTokenizer(self.folder)
        return ClipTokenizer(text, folder=self.folder, wanted=self.wanted)


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
        _follow_archive(config, weights)
        return Origin(name, "random" if weights is None else pretrained, config, weights=weights)
    if name.startswith(("local-dir:", "hf-hub:")):
        check_unused(name, pretrained=pretrained, model=model)
    if name.startswith("local-dir:"):
        return _find_in_folder(Path(name.removeprefix("local-dir:")), name=name)
    if name.startswith("hf-hub:"):
        return _find_on_hub(name.removeprefix("hf-hub:"), name=name)
    if model is not None:
        check_unused(f"model={model!r}", pretrained=pretrained)
        config, weights = read_architecture(model), _check_file(name)
        _follow_archive(config, weights)
        return Origin(model, name, config, weights=weights, wanted=f"{model} random")
    if Path(name).is_dir():
        raise BackboneError(f"{name} is a folder: write local-dir:{name}")
    if Path(name).is_file():
        raise BackboneError(f"{name} is a file of weights: name its architecture, model='ViT-B-32'")
    if is_repository(name):
        check_unused(name, pretrained=pretrained)
        return _find_on_hub(name, name=name)
    return _find_tag(name, pretrained)


def is_architecture(name: str) -> bool:
    """Return whether open_clip has a model configuration of this name."""
    import open_clip

    return open_clip.get_model_config(name.replace("/", "-")) is not None


def is_repository(name: str) -> bool:
    """Return whether this is a name on the hub, `org/name`, and not an architecture written like `ViT-B/32`."""
    return re.fullmatch(r"[\w.-]+/[A-Za-z][\w.-]*", name) is not None and not is_architecture(name)


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
            _follow_archive(config, Path(pretrained))
            return Origin(name, pretrained, config, weights=Path(pretrained), wanted=f"{name} random")
        raise BackboneError(f"{name} has no weights {pretrained!r}; {_suggest(pretrained, [*tags, 'random'])}")
    if tag.get("quick_gelu"):
        config["quick_gelu"] = True
    weights = fetch_tag(name, pretrained, tag)
    return Origin(name, pretrained, config, preprocess=tag, weights=weights, wanted=f"{name} {pretrained}")


def _find_on_hub(repository: str, *, name: str) -> Origin:
    cached = find_cached_model(repository)
    if cached is not None and not (cached / CONFIG).is_file():
        return _find_in_transformers_folder(cached, name=name)
    try:
        file = fetch(repository, (CONFIG,), wanted=name)
    except FileNotFoundError:
        return _find_in_transformers_folder(fetch_folder(repository, wanted=name), name=name)
    config, preprocess = _read_config(file)
    try:
        weights = fetch(repository, WEIGHTS, wanted=name)
    except FileNotFoundError as error:
        raise BackboneError(f"{name} is not an open_clip model: {error}") from error
    return Origin(name, None, config, preprocess=preprocess, weights=weights, wanted=name)


def _find_in_folder(folder: Path, *, name: str) -> Origin:
    file = folder / CONFIG
    if not file.is_file():
        if read_kind(folder) is not None:
            return _find_in_transformers_folder(folder, name=name)
        raise BackboneError(
            f"{name}: expected a folder with {CONFIG}, or with the config.json of a CLIPModel or SiglipModel of "
            f"transformers, and weights; there is no {file}"
        )
    config, preprocess = _read_config(file)
    candidates = [folder / name for name in WEIGHTS]
    found = [*filter(Path.is_file, candidates), *sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.pt"))]
    if not found:
        raise BackboneError(f"{folder} has no weights: expected one of {', '.join(file.name for file in candidates)}")
    return Origin(name, None, config, preprocess=preprocess, weights=found[0], folder=folder.absolute())


def _find_in_transformers_folder(folder: Path, *, name: str) -> Origin:
    kind = read_kind(folder)
    if kind not in KINDS:
        raise BackboneError(
            f"{name} holds a model of transformers of the kind {kind}: expected a CLIPModel or SiglipModel "
            f"({' or '.join(KINDS)}); load one tower with load_vision or load_text, two with load_dual"
        )
    config, folder = read_config(folder), folder.absolute()
    if kind == "siglip":
        return Origin(name, None, config.to_dict(), folder=folder, wanted=name, transformers="siglip")
    converted = convert_config(config, folder=folder)
    place = str(folder) if name.startswith("local-dir:") else name.removeprefix("hf-hub:")
    converted["text_cfg"] |= _choose_tokenizer(folder, vocabulary=config.text_config.vocab_size, place=place)
    weights = find_weights(folder)
    return Origin(name, None, converted, weights=weights, folder=folder, wanted=name, transformers="clip")


def _choose_tokenizer(folder: Path, *, vocabulary: int, place: str) -> dict[str, Any]:
    """Return the tokenizer's key of a `text_cfg`: none if it is the one that open_clip has of its own.

    Then the model, once trained and saved, needs no tokenizer from `place`.
    """
    from open_clip.tokenizer import SimpleTokenizer

    own = SimpleTokenizer()
    absent = find_missing_of_tokenizer(folder) is not None
    if vocabulary == own.vocab_size and (absent or load_tokenizer(folder).get_vocab() == own.encoder):
        return {}
    return {"hf_tokenizer_name": place}


def _follow_archive(config: dict[str, Any], weights: Path | None) -> None:
    """Set the activation that the code in a TorchScript archive runs, such as OpenAI's, unless `config` says one.

    No other file of weights says which activation they were trained with.
    """
    if weights is not None and (code := read_code(weights)):
        config.setdefault("quick_gelu", QUICK_GELU in code)


def _read_config(file: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the model configuration and the preprocessing in an open_clip_config.json."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return _check_config(content["model_cfg"]), content.get("preprocess_cfg", {})
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BackboneError(f"{file} is not an open_clip configuration with a model_cfg ({error!r})") from error


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


def check_unused(name: str, **arguments: object) -> None:
    """Raise BackboneError for an argument that has no use beside `name`."""
    for argument, value in arguments.items():
        if value is not None:
            raise BackboneError(f"{name} with {argument}={value!r} is of no use: leave {argument} out")


def _check_file(name: str) -> Path:
    if not Path(name).is_file():
        raise BackboneError(f"{name}: no such file of weights")
    return Path(name)


def _suggest(given: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"
