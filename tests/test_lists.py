"""Every public function of the five packages that takes a list of texts, paths or pictures: one of them is refused."""

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

MODULES = (
    *("clipse", "aaclip", "videoclip", "edgeglass"),
    *(f"clip_common.{room}" for room in ("backbones", "captions", "config", "features", "images", "index")),
    *(f"clip_common.{room}" for room in ("losses", "metrics", "regions", "runs", "sounds", "synthetic", "tables")),
    *("clip_common.tensors", "clip_common.training", "clip_common.backbones.tokenizers"),
)
LIST = re.compile(
    r"\b(?:Sequence|Iterable|Collection|list)\[(?:[\w.]+ \| )*(?:[\w.]+\.)?(?:str|Path|Any|Image|Sequence\[str)\b"
)
"""Annotation of a list of texts, paths, pictures, or anything."""
ALLOWED = {
    "aaclip.Detector.predict images": "one picture or a folder is a question of its own",
    "edgeglass.VLM.ask question": "one question has one answer",
    "clip_common.backbones.Feed.batch items": "a protocol",
    "clip_common.backbones.Tokenizer.__call__ texts": "a protocol",
    "clip_common.backbones.tokenizers.Tokenizer.__call__ texts": "a protocol",
    "clip_common.backbones.tokenizers.MissingTokenizer.__call__ texts": "refuses every text",
    "clip_common.index.VectorIndex.add payloads": "JSON values, counted against the ids",
    "clip_common.index.VectorIndex.update payloads": "JSON values, counted against the ids",
    "clip_common.index.VectorIndex.add stamps": "counted against the ids",
    "clip_common.index.VectorIndex.update stamps": "counted against the ids",
}
"""Parameters that may be a single text, and why."""


def functions(module: str) -> Iterator[tuple[str, Callable[..., Any], bool]]:
    """Yield name, function and whether it is a method, of what a module offers."""
    content = importlib.import_module(module)
    own = [name for name, value in vars(content).items() if getattr(value, "__module__", "") == module]
    for name in getattr(content, "__all__", [name for name in own if not name.startswith("_")]):
        offered = getattr(content, name)
        if not inspect.isclass(offered):
            if callable(offered):
                yield f"{module}.{name}", offered, False
            continue
        for key, value in inspect.getmembers(offered, lambda one: inspect.isfunction(one) or inspect.ismethod(one)):
            package = (getattr(value, "__module__", None) or "").partition(".")[0]
            made = key == "__init__" and hasattr(offered, "__dataclass_fields__")
            if package == module.partition(".")[0] and not made and (not key.startswith("_") or key.startswith("__")):
                yield f"{module}.{name}.{key}", value, inspect.isfunction(value)


def lists() -> Iterator[tuple[str, Callable[..., Any], str, bool]]:
    for module in MODULES:
        for name, function, is_method in functions(module):
            try:
                parameters = inspect.signature(function).parameters.values()
            except ValueError:  # a function of C
                continue
            for parameter in parameters:
                if LIST.search(str(parameter.annotation)) and "Callable" not in str(parameter.annotation):
                    yield name, function, parameter.name, is_method


FOUND = {f"{name} {parameter}": (function, parameter, method) for name, function, parameter, method in lists()}


def test_the_walk_finds_what_people_call():
    for known in (
        "clipse.Retriever.encode_text texts",
        "edgeglass.Aligner.encode texts",
        "aaclip.Detector.remember images",
    ):
        assert known in FOUND
    assert len(FOUND) > 50
    assert set(ALLOWED) <= set(FOUND)


@pytest.mark.parametrize("name", [name for name in FOUND if name not in ALLOWED])
@pytest.mark.parametrize("single", ["a dog", Path("dog.jpg")], ids=["text", "path"])
def test_a_single_item_where_a_list_is_expected_is_one_line(name, single):
    function, parameter, is_method = FOUND[name]
    given: dict[str, Any] = {}
    for number, other in enumerate(inspect.signature(function).parameters.values()):
        if other.default is inspect.Parameter.empty and other.kind is not other.VAR_KEYWORD:
            given[other.name] = ["a"] if LIST.search(str(other.annotation)) and number else object()
    arguments = given | {parameter: single}
    positional = [arguments.pop(next(iter(inspect.signature(function).parameters)))] if is_method else []
    with pytest.raises(ValueError, match="expected a list; give") as caught:
        list(function(*positional, **arguments))  # a generator checks when it is read
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> dict[str, Any]:
    from clip_common.backbones import load_clip, load_text
    from clip_common.features import FeatureCache
    from clip_common.index import VectorIndex
    from clipse import Retriever

    clip, words = load_clip("tiny"), load_text("tiny")
    clip.image_tower.freeze_trunk()
    words.tower.freeze_trunk()
    return {
        "retriever": Retriever.from_pretrained("tiny"),
        "clip": clip,
        "words": words,
        "cache": FeatureCache(tmp_path_factory.mktemp("cache")),
        "index": VectorIndex(model="a", model_name="a", collection="a"),
    }


EMPTY: dict[str, Callable[[dict[str, Any]], Any]] = {
    "Retriever.encode_text": lambda its: its["retriever"].encode_text([]),
    "Retriever.encode_image": lambda its: its["retriever"].encode_image([]),
    "ClipTokenizer": lambda its: its["clip"].tokenizer([]),
    "TransformersTokenizer": lambda its: its["words"].feed.tokenizer([]),
    "TextFeed.batch": lambda its: its["words"].feed.batch([]),
    "ImageFeed.batch": lambda its: its["clip"].image.feed.batch([]),
    "FeatureCache.features": lambda its: its["cache"].features(its["words"], []),
    "FeatureCache.features of images": lambda its: its["cache"].features(its["clip"].image, [], layers=(1,)),
    "VectorIndex.vectors": lambda its: its["index"].vectors([]),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_list_gives_no_rows_or_one_line(objects, name):
    try:
        assert len(EMPTY[name](objects)) == 0
    except ValueError as error:
        assert str(error).endswith("is empty: give at least one")  # noqa: PT017 (either outcome is right)


def test_nothing_is_added_to_or_deleted_from_an_index_by_empty_lists(objects):
    objects["index"].add([], torch.empty(0, 4))
    objects["index"].delete([])
    assert len(objects["index"]) == 0
