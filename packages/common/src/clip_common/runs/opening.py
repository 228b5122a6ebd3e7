"""Find the saved model that a person names: in a run folder, or in a folder that `save_pretrained` wrote.

A saved model is a folder with a marker, `config.json`: the package that wrote it, the version of its format, and
whatever else the package needs to load it. Write the marker last: a folder without it holds no model yet.

    write_marker(folder, {"size": 336}, package="toy", format=1)  # in save_pretrained
    folder = find_model("runs/toy/first", package="toy", format=1)  # runs/toy/first/model
    size = read_marker(folder, package="toy", format=1)["size"]

Every error is a ValueError of one line. Nothing here imports torch.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_common.runs.files import write_json
from clip_common.runs.folder import Run, is_run

MARKER = "config.json"
"""The file that makes a folder a saved model."""
MODEL = "model"
"""Folder of a run's model inside the run."""


def find_model(
    source: str | Path, *, package: str, format: int, older: Sequence[str] = (), verb: str = "train"
) -> Path:
    """Return the folder of a saved model: `source/model` for a run folder, else `source` itself.

    Args:
        source: A run folder, or a folder that `save_pretrained` wrote.
        package: Import name of the package that is to load the model; also the name of its command.
        format: Version of the format that this package reads.
        older: Names of files by which models of earlier versions are recognised that had no `config.json`.
        verb: The package's command that trains a model.

    Raises:
        ValueError: No such folder, neither a run nor a model, a model or run of another package, a run without a model,
            a series of several runs, a model of another version of the package, or a damaged marker.
    """
    source = Path(source)
    known = f"give a run folder, e.g. runs/{package}/NAME, or a folder that save_pretrained wrote"
    if not source.is_dir():
        raise ValueError(f"{source}: no such folder: {known}")
    folder = source / MODEL if is_run(source) else source
    if (folder / MARKER).is_file():
        read_marker(folder, package=package, format=format, verb=verb)
        return folder
    if any((folder / name).exists() for name in older):
        raise _older(folder, package, verb)
    if folder == source:
        raise ValueError(f"{source} is neither a run folder nor a saved model of {package}: {known}")
    raise _without_model(Run.open(source), package, verb)


def read_marker(folder: Path, *, package: str, format: int, verb: str = "train") -> dict[str, Any]:
    """Read a saved model's marker; see `write_marker`, and `find_model` for the arguments.

    Raises:
        ValueError: The marker is damaged, of another program or package, or of another version of the package.
    """
    file = folder / MARKER
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}: copy the folder again") from error
    if not isinstance(content, dict) or not content.keys() & {"package", "format"}:
        raise ValueError(f"{file} was written by another program: give a model that {package} saved")
    if "package" not in content:
        raise _older(folder, package, verb)
    if content["package"] != package:
        raise _of_another(f"{folder} is a model", content["package"], package)
    version = content.get("format")
    if not isinstance(version, int):
        raise ValueError(f"{file} is damaged: its format is {version!r}: copy the folder again")
    if version != format:
        if version < format:
            raise _older(folder, package, verb)
        raise ValueError(f"{folder} was saved by a newer version of {package}: update {package}")
    return content


def write_marker(folder: Path, content: Mapping[str, Any], *, package: str, format: int) -> Path:
    """Write a saved model's marker, atomically; call it after all other files of the model are written.

    Args:
        folder: The model's folder.
        content: What the package needs to load the model; JSON values.
        package: Import name of the package.
        format: Version of the format; raise it when `content` or the files beside it change their meaning.
    """
    return write_json(folder / MARKER, make_marker(content, package=package, format=format))


def make_marker(content: Mapping[str, Any], *, package: str, format: int) -> dict[str, Any]:
    """Return the content of a marker, for a package whose `config.json` another function writes."""
    return {"package": package, "format": format, **content}


def check_made_by(run: Run, *, package: str, verb: str | None = None) -> None:
    """Raise ValueError if another package made the run, or another verb of the package.

    Args:
        run: The run that is to be resumed.
        package: Import name of the package.
        verb: The verb; None accepts any.
    """
    if run.package != package:
        raise _of_another(f"{run.path} is a run", run.package, package)
    if verb is not None and run.verb != verb:
        raise ValueError(
            f"{run.path} is a run of `{package} {run.verb}`, not of `{package} {verb}`: resume it with its own command"
        )


def _without_model(run: Run, package: str, verb: str) -> ValueError:
    if run.package != package:
        return _of_another(f"{run.path} is a run", run.package, package)
    if members := sorted(file.parent for file in run.path.glob(f"{run.package}/[!.]*/config.yaml")):
        return ValueError(
            f"{run.path} is a series of several runs (`{run.package} {run.verb}`): name one of them, e.g. {members[0]}"
        )
    if run.verb != verb:
        return ValueError(
            f"{run.path} is a run of `{package} {run.verb}`, which keeps no model: train one with `{package} {verb}`"
        )
    return ValueError(f"{run.path} is a run without a model yet: finish it with `{package} {verb} --resume {run.path}`")


def _of_another(what: str, other: str, package: str) -> ValueError:
    return ValueError(f"{what} of {other}, not of {package}: open it with the command `{other}`")


def _older(folder: Path, package: str, verb: str) -> ValueError:
    return ValueError(
        f"{folder} was saved by an older version of {package}, which this one cannot read: "
        f"train it again with `{package} {verb}`"
    )
