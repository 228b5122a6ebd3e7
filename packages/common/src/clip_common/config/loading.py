"""Resolve a configuration: the schema's defaults, a YAML file over them, dotted overrides over both."""

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass, make_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from clip_common.errors import ConfigError, check_list

T = TypeVar("T")


def load_config(
    schema: type[T],
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    package: str | None = None,
) -> T:
    """Return a configuration: the defaults of `schema`, then a YAML file, then overrides.

    Metadata of a field: `{"alias": "lambda"}` lets it also be set by that name. `{"fields": function}` makes a dict
    field extend its section: the function returns the further keys of the section, by name or alias, as
    `name: (canonical name, type)`. Such a key is checked like a field and kept in the dict; the function is called only
    for keys that are not fields. Other `dict[str, Any]` fields are free-form.

    A schema may have a class attribute `explained_keys`: key, or section → advice, shown for a key that is no field,
    such as one that another project has.

    Args:
        schema: Dataclass of dataclasses; fields are numbers, str, bool, Literal, optional ones, lists, tuples, dicts.
        config: Name of a YAML in the package's `configs/`, a path to one, or its content.
        overrides: `section.field=value` each; the value is YAML (`null`, `[1, 2]`, `1e-4`), text is taken literally.
        package: Import name of the package whose `configs/` folder is searched.

    Raises:
        ConfigError: One line: unknown key or file, wrong type, value that is not a choice, unreadable YAML.
    """
    check_list(overrides, "overrides")
    tree = OmegaConf.structured(schema)
    if config is not None:
        content = config if isinstance(config, Mapping) else _read_yaml(config, package=package)
        for key, value, hint in _leaves(schema, content):
            _assign(tree, key, value, hint)
    for text in overrides:
        _assign(tree, *_parse_override(schema, text))
    try:
        return cast(T, OmegaConf.to_object(tree))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: has no default; set it with {error.full_key}=…") from error


def apply_overrides(config: T, overrides: Sequence[str]) -> T:
    """Return a configuration with overrides, `section.field=value` each, applied.

    Raises:
        ConfigError: See `load_config`.
    """
    check_list(overrides, "overrides")
    tree = OmegaConf.structured(config)
    for text in overrides:
        _assign(tree, *_parse_override(type(config), text))
    return cast(T, OmegaConf.to_object(tree))


def to_yaml(config: object) -> str:
    """Return the configuration as YAML, in the order of its fields; `load_config` reads back an equal one."""
    content = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return str(OmegaConf.to_yaml(OmegaConf.create(_flatten(type(config), content))))


def _flatten(schema: Any, content: Any) -> dict[str, Any]:
    """Return the content of a section as a user writes it: keys of an extension beside the fields."""
    hints, extension = get_type_hints(schema), _extension(schema)
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if extension is not None and name == extension.name:
            flat |= value
        else:
            flat[name] = _flatten(hints[name], value) if is_dataclass(hints[name]) else value
    return flat


def _read_yaml(config: str | Path, *, package: str | None) -> Mapping[Any, Any]:
    """Return the content of a named configuration of the package, or of a file."""
    folder = resources.files(package) / "configs" if package else None
    named = {Path(entry.name).stem: entry for entry in folder.iterdir()} if folder and folder.is_dir() else {}
    source = named.get(str(config), Path(config))
    if not source.is_file():
        known = f"; {package} knows {', '.join(sorted(named))}" if named else ""
        raise ConfigError(f"configuration {str(config)!r}: neither a file nor a known name{known}")
    try:
        content = OmegaConf.to_container(OmegaConf.create(source.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{config}: not readable as YAML: {_one_line(error)}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{config}: expected sections with fields, got a {type(content).__name__}")
    return content


def _leaves(schema: type, content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield canonical key, value and type of each leaf of a YAML mapping."""
    for name, value in content.items():
        key, hint = _resolve(schema, f"{prefix}{name}")
        if not is_dataclass(hint):
            yield key, value, hint
        elif isinstance(value, Mapping):
            yield from _leaves(schema, value, prefix=f"{key}.")
        elif value is not None:  # a section whose fields are all commented out reads as null
            raise ConfigError(_section_message(key, hint))


def _parse_override(schema: type, text: str) -> tuple[str, Any, Any]:
    """Return canonical key, value and type of an override such as `optim.lr=3e-5`."""
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"{text!r}: an override is written section.field=value")
    key, hint = _resolve(schema, key)
    if is_dataclass(hint):
        raise ConfigError(_section_message(key, hint))
    if _is_text(hint) and not raw.startswith(("'", '"')):
        # literal: a run may be called 007, no or 1e3
        return key, None if _is_optional(hint) and raw in ("", "null") else raw, hint
    try:
        return key, OmegaConf.to_container(OmegaConf.create(f"value: {raw}"))["value"], hint
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}: {raw!r} is not readable as YAML: {_one_line(error)}") from error


def _assign(tree: DictConfig, key: str, value: Any, hint: Any) -> None:
    """Set one leaf; OmegaConf checks and converts its type."""
    try:
        if isinstance(value, bool) and _is_text(hint):
            raise TypeError("YAML reads no, off, yes, on as true or false")
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(tree, parent) if parent else tree
        section = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
        extension = _extension(section)
        if extension is not None and name not in _fields(section):
            OmegaConf.update(tree, f"{parent}.{extension.name}.{name}", _convert(value, hint))
            return
        while parent and OmegaConf.select(tree, parent) is None:  # inside a free-form field that is still null
            key, value = parent, {name: value}
            parent, _, name = key.rpartition(".")
        OmegaConf.update(tree, key, value)
        OmegaConf.select(tree, key)  # resolve interpolations now, while the key is known
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError(f"{key}: expected {_describe(hint)}, got {value!r} ({type(value).__name__})") from error


def _resolve(schema: type, key: str) -> tuple[str, Any]:
    """Return the canonical form (aliases replaced) and the type of a dotted key."""
    hint: Any = schema
    canonical = ""
    for name in key.split("."):
        if _is_mapping(hint):  # free-form from here on
            hint = Any
        elif hint is not Any:
            known = _fields(hint)
            if name not in known:
                known |= _extra_fields(hint)
            if name not in known:
                raise ConfigError(_unknown_message(schema, key, section=canonical, siblings=list(known)))
            name, hint = known[name]
        canonical = f"{canonical}.{name}" if canonical else name
    return canonical, hint


def _fields(schema: Any) -> dict[str, tuple[str, Any]]:
    """Return name or alias → name and type for a dataclass, and an empty dict for other types."""
    if not is_dataclass(schema):
        return {}
    hints = get_type_hints(schema)
    names = {field.name: (field.name, hints[field.name]) for field in fields(schema) if "fields" not in field.metadata}
    aliases = {field.metadata["alias"]: names[field.name] for field in fields(schema) if "alias" in field.metadata}
    return names | aliases


def _extension(schema: Any) -> Field[Any] | None:
    """Return the dict field that extends a section; None for most sections."""
    extensions = [field for field in fields(schema) if "fields" in field.metadata] if is_dataclass(schema) else []
    return extensions[0] if extensions else None


def _extra_fields(schema: Any) -> dict[str, tuple[str, Any]]:
    """Return the further keys that a section's extension takes: name or alias → name and type."""
    extension = _extension(schema)
    return {} if extension is None else dict(extension.metadata["fields"]())


def _convert(value: Any, hint: Any) -> Any:
    """Return a value converted to a type, by the rules of a field of that type."""
    holder = OmegaConf.structured(make_dataclass("Holder", [("value", hint)]))
    OmegaConf.update(holder, "value", value)
    return OmegaConf.to_container(holder)["value"]


def _keys(schema: Any, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of a schema."""
    for name, (_, hint) in (_fields(schema) | _extra_fields(schema)).items():
        yield f"{prefix}{name}"
        yield from _keys(hint, prefix=f"{prefix}{name}.")


def _unknown_message(schema: type, key: str, *, section: str, siblings: Sequence[str]) -> str:
    explained = getattr(schema, "explained_keys", {})
    advice = explained.get(key) or explained.get(key.partition(".")[0])
    if advice:
        return f"{key}: unknown key; {advice}"
    if not siblings:
        return f"{key}: unknown key; {section} has no fields"
    known = list(_keys(schema))
    namesakes = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]
    near = difflib.get_close_matches(key, namesakes, n=1, cutoff=0) or difflib.get_close_matches(key, known, n=1)
    if near:
        return f"{key}: unknown key; did you mean {near[0]}?"
    return f"{key}: unknown key; {section or 'the configuration'} has {', '.join(siblings)}"


def _section_message(key: str, hint: Any) -> str:
    return f"{key}: is a section; set one of its fields, e.g. {key}.{next(iter(_fields(hint)))}=…"


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_optional(hint: Any) -> bool:
    return type(None) in _members(hint)


def _is_mapping(hint: Any) -> bool:
    return any(get_origin(member) is dict or member is dict for member in _members(hint))


def _is_text(hint: Any) -> bool:
    """Return whether a type is str or a choice of strings, possibly optional."""
    some = [member for member in _members(hint) if member is not type(None)]
    return all(member is str or get_origin(member) is Literal for member in some)


def _describe(hint: Any) -> str:
    """Return a type in words, e.g. `int or null` or `one of a, b`."""

    def one(member: Any) -> str:
        if get_origin(member) is Literal:
            return f"one of {', '.join(map(str, get_args(member)))}"
        if member is type(None):
            return "null"
        return str(member) if get_origin(member) else getattr(member, "__name__", str(member))

    return " or ".join(one(member) for member in _members(hint))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
