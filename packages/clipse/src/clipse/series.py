"""Several runs in one folder, one after another: what `compare` and `tune` are made of."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from clip_common.config import load_config, to_yaml
from clip_common.reporting import Reporter
from clip_common.runs import Run, write_json
from clip_common.runs.files import read_json
from clipse.config import Config
from clipse.data import ImageRecord
from clipse.experiment import train
from clipse.results import model_label

Options = TypeVar("Options")
Announce = Callable[[str], None]
"""Told in one line what begins."""


def own_options(schema: type[Options], overrides: Sequence[str], *, own: Sequence[str]) -> tuple[Options, list[str]]:
    """Options of the verb, and the overrides that are the configuration's."""
    mine = [text for text in overrides if text.partition("=")[0].strip() in own]
    return load_config(schema, overrides=mine), [text for text in overrides if text not in mine]


def require_one_device(config: Config, *, verb: str) -> None:
    """Raise ValueError where a run would take several processes: they cannot follow one another in one command."""
    several = config.trainer.devices not in ("auto", "cpu", "cpu:1", "1") or config.trainer.nodes > 1
    if several or (config.trainer.devices == "auto" and torch.cuda.device_count() > 1):
        raise ValueError(
            f"trainer.devices={config.trainer.devices}, trainer.nodes={config.trainer.nodes}: {verb} trains one "
            "run after another on one device: set trainer.devices=1 (or cpu) and trainer.nodes=1"
        )


def series_folder(kind: str, config: Config) -> Run:
    """The folder `runs/KIND/NAME` of several runs, new or gone on with.

    Raises:
        ValueError: It is there with another configuration.
    """
    name = config.name or f"{model_label(config)}-{Path(str(config.data.root)).name}"
    text = to_yaml(replace(config, name=name))
    return Run.create(kind, config_yaml=text, name=name, root=config.runs, resume=True)


def require_same_data(series: Run, splits: Mapping[str, Sequence[ImageRecord]]) -> None:
    """Keep a digest of the names and captions of each split in data.json; what was trained and scored was on these.

    Raises:
        ValueError: A split is not what it was when the series first used it.
    """
    file = series.path / "data.json"
    before = read_json(file)
    after = {split: _digest(records) for split, records in splits.items()}
    changed = [split for split, digest in after.items() if before.get(split, digest) != digest]
    if changed:
        raise ValueError(
            f"{series.path}: the images or captions of {', '.join(changed)} have changed since it was started: "
            "restore them, or begin anew with another name="
        )
    write_json(file, before | after)


def member_config(config: Config, series: Run, *, name: str) -> Config:
    """The configuration of one run of a series: everything it writes lies in the series' folder but for the caches."""
    cache = config.data.cache_dir or str(Path(config.runs) / "cache")
    return replace(
        config,
        name=name,
        runs=series.path.as_posix(),
        results=(series.path / "results").as_posix(),
        data=replace(config.data, cache_dir=cache),
    )


def trained(config: Config, series: Run, *, reporter: Reporter) -> Run:
    """The run of this configuration, finished: trained, resumed where it was killed, or as it lies there."""
    path = Path(config.runs) / "clipse" / str(config.name)
    if not series.ledger.done(path.name):
        series.ledger.start(path.name)
        train(config, resume=path if path.exists() else None, reporter=reporter)
        series.ledger.finish(path.name)
    return Run.open(path)


def _digest(records: Sequence[ImageRecord]) -> str:
    content = json.dumps([(record.name, record.captions) for record in records])
    return hashlib.sha256(content.encode()).hexdigest()
