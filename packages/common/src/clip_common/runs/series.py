"""Train several runs, one after another, in one folder: comparisons, searches and ablations.

A series is a run folder `root/VERB/NAME` whose members are the runs in `PACKAGE/` inside it:

    series = open_series("compare", config, package="clipse", name="first")  # new, or begun before
    with series.locked():
        check_same_data(series, {"train": rows}, what="captions")
        for seed in seeds:
            member = member_config(config, series, name=f"s{seed}")
            run = train_member(series, member, train, reporter=reporter)  # trains, resumes or reuses
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from clip_common.config import load_config, to_yaml
from clip_common.reporting import Reporter
from clip_common.runs.files import read_json, write_json
from clip_common.runs.folder import Run

Options = TypeVar("Options")
Config = TypeVar("Config")
"""A package's configuration: a dataclass with `name`, `runs` and `data.cache_dir`."""
Announce = Callable[[str], None]
"""Called with one line as each member begins."""


def split_options(schema: type[Options], overrides: Sequence[str], *, own: Sequence[str]) -> tuple[Options, list[str]]:
    """Split overrides into the verb's own options and the overrides of the configuration.

    Args:
        schema: The verb's options.
        overrides: `section.field=value` each.
        own: Names of the verb's options.

    Raises:
        ConfigError: A wrong value of an option.
    """
    mine = [text for text in overrides if text.partition("=")[0].strip() in own]
    return load_config(schema, overrides=mine), [text for text in overrides if text not in mine]


def check_choices(option: str, given: Sequence[object], *, example: str) -> None:
    """Raise ValueError if a list option is empty or names something twice.

    Args:
        option: Its name, e.g. `seeds`.
        given: Its values.
        example: A value that would do, e.g. `[0,1,2]`.
    """
    if not given or len(set(given)) < len(given):
        shown = ",".join(map(str, given))
        raise ValueError(f"{option}=[{shown}]: give at least one, and each once, e.g. {option}={example}")


def open_series(verb: str, config: Any, *, package: str, name: str) -> Run:
    """Make the folder of a series, `config.runs/VERB/NAME`, or reopen it.

    Args:
        verb: Command of the package that trains the series, e.g. `compare`.
        config: Configuration of all members, recorded with `name` in the series' folder.
        package: Import name of the package.
        name: Name of the series.

    Raises:
        ValueError: The series exists with another configuration, or `name` is not a folder name.
    """
    text = to_yaml(replace(config, name=name))
    return Run.create(package, group=verb, verb=verb, config_yaml=text, name=name, root=config.runs, resume=True)


def member_config(config: Config, series: Run, *, name: str) -> Config:
    """Return the configuration of one member: its folder is inside the series, its cache is shared with other runs."""
    settings: Any = config
    cache_dir = settings.data.cache_dir or (Path(settings.runs) / "cache").as_posix()
    data = replace(settings.data, cache_dir=cache_dir)
    member: Config = replace(settings, name=name, runs=series.path.as_posix(), data=data)
    return member


def train_member(series: Run, config: Any, train: Callable[..., object], *, reporter: Reporter) -> Run:
    """Return a finished member of a series: train it, resume it, or reuse it.

    Args:
        series: Its ledger records which members are finished.
        config: The member's configuration, from `member_config`.
        train: The package's `train(config, *, resume, reporter)`.
        reporter: Shows progress of the work around training.
    """
    path = series.path / series.package / config.name
    if not series.ledger.done(path.name):
        series.ledger.start(path.name)
        train(config, resume=path if path.exists() else None, reporter=reporter)
        series.ledger.finish(path.name)
    return Run.open(path)


def check_same_data(series: Run, splits: Mapping[str, Iterable[Any]], *, what: str) -> None:
    """Raise ValueError if the data have changed since the series first used them.

    The first call for a split writes its hash into data.json of the series.

    Args:
        series: The folder of the series.
        splits: Split → its items as JSON values, e.g. names and captions.
        what: What the items are, for the message.
    """
    file = series.path / "data.json"
    before = read_json(file)
    digests = {split: hash_items(items) for split, items in splits.items()}
    changed = [split for split, digest in digests.items() if before.get(split, digest) != digest]
    if changed:
        raise ValueError(
            f"{series.path}: the {what} of {', '.join(changed)} have changed since it was started: "
            "restore them, or start a new series with another name="
        )
    write_json(file, before | digests)


def hash_items(items: Iterable[Any]) -> str:
    """Return the sha256 of items that are JSON values, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()
