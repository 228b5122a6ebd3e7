"""What prompts call the classes of the published sets, their domain, and names from a user's file."""

import ast
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

import yaml

Domain = Literal["industrial", "medical"]

CONSTANT = "REAL_NAMES"
"""Dictionary of the released code's dataset/constants.py."""


@cache
def read_built_in() -> dict[str, Any]:
    """Return the content of prompts.yaml."""
    text = resources.files("aaclip.models").joinpath("prompts.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def normalise_class(name: str) -> str:
    """Return the key of a class: "metal_nut", "Metal nut" and " metal  nut" are one class."""
    return " ".join(name.replace("_", " ").casefold().split())


def list_names() -> dict[str, str]:
    """Return class (`normalise_class`) → name of the published classes whose names are known here."""
    domains = read_built_in()["names"].values()
    known = {class_name: name for names in domains for class_name, name in names.items()}
    return {normalise_class(class_name): name for class_name, name in known.items() if name is not None}


def find_domain(classes: Iterable[str]) -> Domain | None:
    """Return the domain of a published set by its classes; None if none of them is known.

    Raises:
        ValueError: Classes of both domains.
    """
    found: dict[str, list[str]] = {}
    for class_name in classes:
        for domain, names in read_built_in()["names"].items():
            if normalise_class(class_name) in map(normalise_class, names):
                found.setdefault(domain, []).append(class_name)
    if len(found) > 1:
        examples = ", ".join(f"{own[0]} is {domain}" for domain, own in found.items())
        raise ValueError(f"the set has classes of two domains ({examples}): choose with score.domain=…")
    return cast(Domain, next(iter(found))) if found else None


def read_names(file: str) -> dict[str, str]:
    """Return class (`normalise_class`) → name from YAML, or from `REAL_NAMES` of the released code's constants.py.

    Either may be flat, or group the classes by set. Python is never executed.

    Args:
        file: Python source if it ends in .py, else YAML.

    Raises:
        ValueError: One line: no such file, one that cannot be read, or something other than names in it.
    """
    source, path = f"prompts.names={file}", Path(file)
    try:
        text = path.read_text(encoding="utf-8")
        # every scalar stays text: 01 is a class of BTAD
        content = _read_constant(text, source) if path.suffix == ".py" else yaml.load(text, Loader=yaml.BaseLoader)
    except FileNotFoundError:
        raise ValueError(f"{source}: no such file; expected YAML, or dataset/constants.py of AA-CLIP") from None
    except (OSError, UnicodeDecodeError, SyntaxError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{source}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{source}: expected class: name for each class, got {content!r:.60}")
    return _flatten(content, source)


def _read_constant(text: str, source: str) -> Any:
    for node in ast.parse(text).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name == CONSTANT:
                return _read_literal(value, source)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value) if name == CONSTANT:
                return _read_literal(value, source)
    raise ValueError(f"{source}: has no {CONSTANT} = {{…}}: give dataset/constants.py of AA-CLIP, or YAML")


def _read_literal(value: ast.expr, source: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{source}: {CONSTANT} is computed, and this file is never executed: write its names as YAML"
        ) from error


def _flatten(content: Mapping[Any, Any], source: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for key, value in content.items():
        for class_name, name in (value if isinstance(value, dict) else {key: value}).items():
            if not isinstance(class_name, str) or not isinstance(name, str) or not name.strip():
                raise ValueError(f"{source}: expected text as the name of {class_name!r}, got {name!r:.60}")
            own = normalise_class(class_name)
            if names.get(own, name) != name:
                raise ValueError(f"{source}: two names for {class_name}, {names[own]!r} and {name!r}: keep one")
            names[own] = name
    return names
