"""Several runs of clipse in one folder: what `compare` and `tune` are made of."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clip_common.config import to_yaml
from clip_common.reporting import Reporter
from clip_common.runs import Run
from clip_common.runs.series import member
from clipse.config import Config
from clipse.data import ImageRecord
from clipse.released.results import model_label
from clipse.training.experiment import train

CONTENTS = "images or captions"
"""What `digest` is taken of."""


def series_folder(kind: str, config: Config) -> Run:
    """The folder `runs/KIND/NAME` of several runs, new or gone on with.

    Raises:
        ValueError: It is there with another configuration.
    """
    name = config.name or f"{model_label(config)}-{Path(str(config.data.root)).name}"
    text = to_yaml(replace(config, name=name))
    return Run.create(kind, config_yaml=text, name=name, root=config.runs, resume=True)


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
    """The run of this configuration, finished."""
    path = Path(config.runs) / "clipse" / str(config.name)
    return member(series, path, lambda resume: train(config, resume=resume, reporter=reporter))


def digest(records: Sequence[ImageRecord]) -> str:
    """Of the names and captions of a split."""
    content = json.dumps([(record.name, record.captions) for record in records])
    return hashlib.sha256(content.encode()).hexdigest()
