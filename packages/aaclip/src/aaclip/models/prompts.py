"""Prompts about a class, and its normal and abnormal embedding. P prompts, D shared width."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.nn.functional import normalize

from aaclip.config import PromptConfig
from aaclip.models.names import list_names, normalise_class, read_built_in, read_names
from clip_common.errors import printable

SETS = ("full", "compact")


@dataclass(frozen=True)
class PromptSet:
    """States and templates; `{}` stands for the class's name in a state, and for the state in a template.

    Attributes:
        normal, abnormal: States.
        templates: Every state is put in every one.
        names: Class (`normalise_class`) → what it is called in prompts.
        mend_articles: Correct "a photo of a a black zipper" and "a intact mug" to "a photo of a black zipper" and "an
            intact mug". The released code does not.
        renormalise: Scale the mean embedding of a class's prompts to unit length.
    """

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    templates: tuple[str, ...]
    names: Mapping[str, str]
    mend_articles: bool = True
    renormalise: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", {normalise_class(name): text for name, text in self.names.items()})
        for kind in ("normal", "abnormal", "templates"):
            given = getattr(self, kind)
            if not given or any(text.count("{}") != 1 for text in given):
                wrong = next((text for text in given if text.count("{}") != 1), "nothing")
                raise ValueError(f"prompts: {kind} must each hold {{}} once, got {wrong!r}")

    def name_of(self, class_name: str) -> str:
        """Return what prompts call a class."""
        return self.names.get(normalise_class(class_name), class_name.replace("_", " ").strip())

    def prompts(self, name: str) -> tuple[list[str], list[str]]:
        """Return the normal and the abnormal prompts for the name of a thing, every state in every template."""
        if not name.strip():
            raise ValueError("the name of a thing is empty: say what is in the picture, for example --name 'metal nut'")
        normal, abnormal = (
            [self._fill(template, state, name) for state in states for template in self.templates]
            for states in (self.normal, self.abnormal)
        )
        return normal, abnormal

    def list_all(self, name: str) -> list[str]:
        """Return all prompts for the name of a thing, the normal ones first."""
        return [prompt for side in self.prompts(name) for prompt in side]

    def _fill(self, template: str, state: str, name: str) -> str:
        text = template.replace("{}", state.replace("{}", name))  # a name may hold braces
        return _mend_articles(text) if self.mend_articles else text


def load_prompts(config: PromptConfig) -> PromptSet:
    """Load `full`, `compact`, or a YAML file with normal, abnormal, templates and names.

    A file may leave some of the four out; the built-in ones are used then. Names in `config.names` win over all others.

    Raises:
        ValueError: No such set or file, or one that cannot be read.
    """
    source, built_in, names = config.set, read_built_in(), list_names()
    if source in SETS:
        content = dict(built_in[source])
    else:
        content = built_in["full"] | _read_file(source)
        names |= {normalise_class(str(name)): text for name, text in (content.get("names") or {}).items()}
    content["names"] = names | ({} if config.names is None else read_names(config.names))
    return _make(content, source, renormalise=config.renormalise)


def note_unnamed(config: PromptConfig, prompts: PromptSet, classes: Iterable[str]) -> list[str]:
    """Return a line about the classes that the released prompts call by their folders; empty if all have names."""
    unnamed = sorted(name for name in set(classes) if normalise_class(name) not in prompts.names)
    if config.set != "compact" or not unnamed:
        return []
    listed = ", ".join(printable(name) for name in unnamed)
    return [f"prompts call these classes by their folders: {listed}; prompts.names=FILE names them"]


def _read_file(source: str) -> dict[str, Any]:
    try:
        content = yaml.load(Path(source).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # 01 is a class of BTAD
    except FileNotFoundError:
        raise ValueError(f"prompts.set={source}: neither {' nor '.join(SETS)} nor a file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"prompts.set={source}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or (
        unknown := sorted(set(content) - {"normal", "abnormal", "templates", "names"})
    ):
        found = f"the unknown key {unknown[0]}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"prompts.set={source}: expected normal, abnormal, templates and names, got {found}")
    return content


def _make(content: Mapping[str, Any], source: str, *, renormalise: bool) -> PromptSet:
    lists = {}
    for kind in ("normal", "abnormal", "templates"):
        given = content[kind]
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise ValueError(f"prompts.set={source}: {kind} must be a list of texts, got {given!r}")
        lists[kind] = tuple(given)
    names = {str(key): str(value) for key, value in content["names"].items()}
    return PromptSet(**lists, names=names, mend_articles=source != "compact", renormalise=renormalise)


def _mend_articles(text: str) -> str:
    text = re.sub(r"\b(?:an?|the) (?=(?:an?|the) )", "", text, flags=re.IGNORECASE)
    return re.sub(r"\b(a)n? (?=(\w))", _article, text, flags=re.IGNORECASE)


def _article(found: re.Match[str]) -> str:
    return f"{found[1]}{'n' if found[2].lower() in 'aeiou' else ''} "


def embed_classes(encode: Callable[[list[str]], Tensor], names: Sequence[str], prompts: PromptSet) -> Tensor:
    """Return the (N, D, 2) normal and abnormal embedding of each name: encode, unit length, mean, unit length again.

    Args:
        encode: From texts to embeddings (P, D).
        names: What the things are called.
        prompts: States and templates. Without `renormalise` the means keep their length (the reference document's
            slip).
    """
    return average_prompts(embed_prompts(encode, names, prompts), prompts)


def embed_prompts(encode: Callable[[list[str]], Tensor], names: Sequence[str], prompts: PromptSet) -> list[Tensor]:
    """Return the unit embeddings (P, D) of the normal, then of the abnormal prompts of each name; see `embed_classes`.

    They are 2 N tensors.
    """
    texts = [prompts.prompts(name) for name in names]
    embedded_PD = normalize(encode([text for sides in texts for side in sides for text in side]), dim=-1)
    return list(embedded_PD.split([len(side) for sides in texts for side in sides]))


def average_prompts(sides: Sequence[Tensor], prompts: PromptSet) -> Tensor:
    """Return the (N, D, 2) embedding of each name from what `embed_prompts` returned."""
    means = torch.stack([side_PD.mean(dim=0) for side_PD in sides])
    if prompts.renormalise:
        means = normalize(means, dim=-1)
    return means.unflatten(0, (-1, 2)).transpose(1, 2)
