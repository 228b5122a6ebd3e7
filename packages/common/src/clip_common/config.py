"""Configuration: typed dataclasses, a YAML file over their defaults, dotted overrides over both.

    config = load_config(Config, config="finetune", overrides=["loss.name=clip", "optim.lr=3e-5"], package="clipse")

A schema is a dataclass of dataclasses. What a person writes wrongly is answered in one line: an unknown key by the
nearest known one, a wrong type by field, type and value. Here are also the two sections that every system shares.
Nothing here imports torch.
"""

import difflib
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields, is_dataclass, make_dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used: one line that says which key, what was given and what is expected."""


@dataclass
class OptimConfig:
    """AdamW and its schedule; see `clip_common.training.build_optimizer` and `warmup_cosine`."""

    lr: float = 1e-4
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled decay of weight matrices; never of biases, norms (1-D parameters), logit scales and logit biases."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's running means of the gradient and of its square."""
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    warmup_epochs: float = 1.0
    """Epochs (or a fraction of one) of linear warmup from 0 to `lr`, counted in steps."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After warmup: cosine to 0 at the last step, or constant."""

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "eps", "warmup_epochs"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"optim.{name}: expected a number from 0, got {value}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas: expected two decays from 0 to below 1, got {list(self.betas)}")


@dataclass
class TrainerConfig:
    """How `clip_common.training.fit` runs; the same names in every system."""

    max_epochs: int = 10
    """Epochs of training."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "32-true"
    """Number format of weights and of autocast, in Lightning's names; a CPU without bf16 is fastest in 32-true."""
    devices: str = "auto"
    """`auto` (all accelerators, else the CPU), `cpu`, `cpu:2` (two CPU processes), a count `4`, or indices `0,1`."""
    nodes: int = 1
    """Machines that take part; start one process a device with torchrun or srun."""
    strategy: str = "auto"
    """`auto`, `ddp`, `fsdp`, or another strategy name of Lightning's."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one optimizer step."""
    grad_clip: float | None = 1.0
    """Largest L2 norm of all gradients together (unscaled first under AMP); null: no clipping."""
    checkpoint_every: int | None = None
    """Optimizer steps between checkpoints inside an epoch; null: at the end of each epoch only."""
    early_stop: int | None = None
    """Stop after this many validations without a better monitored value; null: never."""
    ema: float | None = None
    """Decay per step of a moving average of the trained weights, which is what is validated and saved; null: none."""
    compile: bool = False
    """torch.compile the forward of each direct child module."""
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    """metrics.csv is always written; `tensorboard` or `wandb` besides."""
    fast_dev_run: bool = False
    """One batch of training and one of validation in one epoch, then everything else as usual: does it run at all?"""
    overfit_batches: int | None = None
    """Train each epoch on the same first N batches, and validate on N: does the loss go to 0?"""
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    """Lightning's profiler of that name; its report is written into the run folder."""
    seed: int = 0
    """Seed of everything random: with the epoch and the index it decides data order, augmentation and dropout."""

    def __post_init__(self) -> None:
        for name in ("max_epochs", "nodes", "accumulate", "checkpoint_every", "early_stop", "overfit_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"trainer.{name}: expected a whole number from 1, got {value}")
        if self.seed < 0:
            raise ConfigError(f"trainer.seed: expected a whole number from 0, got {self.seed}")
        if not re.fullmatch(r"auto|cpu(:[1-9]\d*)?|[1-9]\d*|\d+(,\d+)+", self.devices):
            raise ConfigError(
                f"trainer.devices: expected auto, cpu, cpu:2, a count or indices 0,1, got {self.devices!r}"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"trainer.ema: expected a decay between 0 and 1 such as 0.999, got {self.ema}")
        if self.ema is not None and self.strategy.startswith(("fsdp", "deepspeed")):
            raise ConfigError(f"trainer.ema: the average needs whole weights, which {self.strategy} splits; use ddp")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ConfigError(
                f"trainer.grad_clip: expected a norm above 0, or null for no clipping, got {self.grad_clip}"
            )


def load_config(
    schema: type[T],
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    package: str | None = None,
) -> T:
    """Resolve a configuration: defaults of `schema`, then a YAML file, then overrides.

    A field with `metadata={"alias": "lambda"}` is also known by that name. `dict[str, Any]` fields are free-form. With
    `metadata={"fields": function}` a dict extends its section instead: the function returns the type of every further
    key of the section, by name or alias as `name: (canonical name, type)`. Such a key is checked like a field and kept
    in the dict. The function is called only for keys that are not fields.

    Args:
        schema: Dataclass of dataclasses; fields are numbers, str, bool, Literal, optional ones, lists, tuples, dicts.
        config: Name of a YAML in the package's `configs/`, or a path to one.
        overrides: `section.field=value` each; the value is YAML (`null`, `[1, 2]`, `1e-4`), for text as it stands.
        package: Import name of the package whose `configs/` folder is searched.

    Raises:
        ConfigError: One line: unknown key or file, wrong type, value out of a field's choices, unreadable YAML.
    """
    tree = OmegaConf.structured(schema)
    if config is not None:
        for key, value, hint in _leaves(schema, _read_yaml(config, package=package)):
            _assign(tree, key, value, hint)
    for text in overrides:
        _assign(tree, *_parse_override(schema, text))
    try:
        return cast(T, OmegaConf.to_object(tree))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: has no default; set it with {error.full_key}=…") from error


def apply_overrides(config: T, overrides: Sequence[str]) -> T:
    """A configuration with `section.field=value` each over it.

    Raises:
        ConfigError: See `load_config`.
    """
    tree = OmegaConf.structured(config)
    for text in overrides:
        _assign(tree, *_parse_override(type(config), text))
    return cast(T, OmegaConf.to_object(tree))


def to_yaml(config: object) -> str:
    """The resolved configuration as YAML, in the order of the dataclass; `load_config` reads back an equal one."""
    content = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return str(OmegaConf.to_yaml(OmegaConf.create(_flattened(type(config), content))))


def _flattened(schema: Any, content: Any) -> dict[str, Any]:
    """Return the content of a section as a user writes it: keys of an extension beside the fields."""
    hints, extension = get_type_hints(schema), _extension(schema)
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if extension is not None and name == extension.name:
            flat |= value
        else:
            flat[name] = _flattened(hints[name], value) if is_dataclass(hints[name]) else value
    return flat


def _read_yaml(config: str | Path, *, package: str | None) -> Mapping[Any, Any]:
    """The mapping in a named configuration of the package, or in a file."""
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
    """Every leaf of a YAML mapping as canonical key, value, type."""
    for name, value in content.items():
        key, hint = _resolve(schema, f"{prefix}{name}")
        if not is_dataclass(hint):
            yield key, value, hint
        elif isinstance(value, Mapping):
            yield from _leaves(schema, value, prefix=f"{key}.")
        elif value is not None:  # a section whose fields are all commented out reads as null
            raise ConfigError(_section_message(key, hint))


def _parse_override(schema: type, text: str) -> tuple[str, Any, Any]:
    """`optim.lr=3e-5` as canonical key, value, type."""
    key, equals, raw = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"{text!r}: an override is written section.field=value")
    key, hint = _resolve(schema, key)
    if is_dataclass(hint):
        raise ConfigError(_section_message(key, hint))
    if _is_text(hint) and not raw.startswith(("'", '"')):
        # as it stands: a run may be called 007, no or 1e3
        return key, None if _is_optional(hint) and raw in ("", "null") else raw, hint
    try:
        return key, OmegaConf.to_container(OmegaConf.create(f"value: {raw}"))["value"], hint
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{key}: {raw!r} is not readable as YAML: {_one_line(error)}") from error


def _assign(tree: DictConfig, key: str, value: Any, hint: Any) -> None:
    """Set one leaf; OmegaConf checks and converts the type."""
    try:
        if isinstance(value, bool) and _is_text(hint):
            raise TypeError("YAML reads no, off, yes, on as true or false")
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(tree, parent) if parent else tree
        section = OmegaConf.get_type(node) if isinstance(node, DictConfig) else None
        extension = _extension(section)
        if extension is not None and name not in _fields(section):
            OmegaConf.update(tree, f"{parent}.{extension.name}.{name}", _converted(value, hint))
            return
        while parent and OmegaConf.select(tree, parent) is None:  # inside a free-form field that is null so far
            key, value = parent, {name: value}
            parent, _, name = key.rpartition(".")
        OmegaConf.update(tree, key, value)
        OmegaConf.select(tree, key)  # resolves an interpolation here, where its key is known
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise ConfigError(f"{key}: expected {_describe(hint)}, got {value!r} ({type(value).__name__})") from error


def _resolve(schema: type, key: str) -> tuple[str, Any]:
    """Canonical key (aliases replaced) and type of a dotted key."""
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
    """Name or alias → name and type, of a dataclass; nothing for other types."""
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


def _converted(value: Any, hint: Any) -> Any:
    """Return a value converted to a type, by the rules of a field of that type."""
    holder = OmegaConf.structured(make_dataclass("Holder", [("value", hint)]))
    OmegaConf.update(holder, "value", value)
    return OmegaConf.to_container(holder)["value"]  # type: ignore[call-overload,index]


def _keys(schema: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a schema."""
    for name, (_, hint) in (_fields(schema) | _extra_fields(schema)).items():
        yield f"{prefix}{name}"
        yield from _keys(hint, prefix=f"{prefix}{name}.")


def _unknown_message(schema: type, key: str, *, section: str, siblings: Sequence[str]) -> str:
    if not siblings:
        return f"{key}: unknown key; {section} has no fields"
    known = list(_keys(schema))
    namesakes = [other for other in known if other.rpartition(".")[2] == key.rpartition(".")[2]]  # in another section
    near = difflib.get_close_matches(key, namesakes, n=1, cutoff=0) or difflib.get_close_matches(key, known, n=1)
    if near:
        return f"{key}: unknown key; did you mean {near[0]}?"
    return f"{key}: unknown key; {section or 'the configuration'} has {', '.join(siblings)}"


def _section_message(key: str, hint: Any) -> str:
    return f"{key}: is a section; set one of its fields, e.g. {key}.{next(iter(_fields(hint)))}=…"


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; a type that is none by itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_optional(hint: Any) -> bool:
    return type(None) in _members(hint)


def _is_mapping(hint: Any) -> bool:
    return any(get_origin(member) is dict or member is dict for member in _members(hint))


def _is_text(hint: Any) -> bool:
    """A str or a choice of strings, perhaps optional."""
    some = [member for member in _members(hint) if member is not type(None)]
    return all(member is str or get_origin(member) is Literal for member in some)


def _describe(hint: Any) -> str:
    """`int or null`, or `one of a, b`."""

    def one(member: Any) -> str:
        if get_origin(member) is Literal:
            return f"one of {', '.join(map(str, get_args(member)))}"
        if member is type(None):
            return "null"
        return str(member) if get_origin(member) else getattr(member, "__name__", str(member))

    return " or ".join(one(member) for member in _members(hint))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
