"""Several runs in one folder, one after another: what comparisons, searches and ablations are made of."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from clip_common.config import load_config
from clip_common.runs.files import read_json, write_json
from clip_common.runs.folder import Run

Options = TypeVar("Options")
Announce = Callable[[str], None]
"""Told in one line what begins."""


def own_options(schema: type[Options], overrides: Sequence[str], *, own: Sequence[str]) -> tuple[Options, list[str]]:
    """Options of the verb, and the overrides that are the configuration's."""
    mine = [text for text in overrides if text.partition("=")[0].strip() in own]
    return load_config(schema, overrides=mine), [text for text in overrides if text not in mine]


def require_same_data(series: Run, digests: Mapping[str, str], *, what: str) -> None:
    """Keep a digest of each split in data.json; what was trained and scored was on these.

    Args:
        series: The folder of the series.
        digests: Split → digest of its contents.
        what: What the contents are called, for the message.

    Raises:
        ValueError: A split is not what it was when the series first used it.
    """
    file = series.path / "data.json"
    before = read_json(file)
    changed = [split for split, digest in digests.items() if before.get(split, digest) != digest]
    if changed:
        raise ValueError(
            f"{series.path}: the {what} of {', '.join(changed)} have changed since it was started: "
            "restore them, or begin anew with another name="
        )
    write_json(file, before | dict(digests))


def member(series: Run, path: Path, train: Callable[[Path | None], object]) -> Run:
    """The finished run `path` of a series: trained, resumed where it was killed, or as it lies there.

    Args:
        series: The folder of the series, whose ledger knows what is finished.
        path: The member's own folder.
        train: Trains it; given the folder to go on with, or None.
    """
    if not series.ledger.done(path.name):
        series.ledger.start(path.name)
        train(path if path.exists() else None)
        series.ledger.finish(path.name)
    return Run.open(path)
