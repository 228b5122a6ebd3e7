"""What `compare` and `tune` share: the series' folder, the configuration of a member, the check of the data."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clip_common.runs import Run, series
from clipse.config import Config
from clipse.data import ImageRecord


def open_series_folder(verb: str, config: Config) -> Run:
    """Open the folder `runs/VERB/NAME` of a series.

    Raises:
        ValueError: The series exists with another configuration.
    """
    name = config.name or f"{config.model.label}-{Path(str(config.data.root)).name}"
    return series.open_series(verb, config, package="clipse", name=name)


def member_config(config: Config, folder: Run, *, name: str) -> Config:
    """Return the configuration of one member of a series, whose results also go into the folder of the series."""
    member = series.member_config(config, folder, name=name)
    return replace(member, results=(folder.path / "results").as_posix())


def check_same_captions(folder: Run, splits: Mapping[str, Sequence[ImageRecord]]) -> None:
    """Raise ValueError if images or captions of a split have changed since the series first used it."""
    items = {name: [(record.name, record.captions) for record in records] for name, records in splits.items()}
    series.check_same_data(folder, items, what="images or captions")
