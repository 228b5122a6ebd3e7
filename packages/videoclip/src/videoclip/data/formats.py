"""Read a data set of clips in any of its formats: a manifest, or folders of videos and maps."""

from collections.abc import Sequence
from pathlib import Path

from clip_common.errors import DataError
from videoclip.config import DataConfig
from videoclip.data.layout import VIDEOS, read_layout
from videoclip.data.manifest import read_manifest
from videoclip.data.records import ClipRecord

MANIFESTS = ("manifest.csv", "manifest.jsonl")


def read_clips(config: DataConfig) -> list[ClipRecord]:
    """Read the clips of `config.root`: a manifest, a folder with one, or a folder of videos/ and labels.csv.

    No frame is decoded. With `config.on_error=skip`, files that a manifest names may be missing and videos may be
    broken: they are skipped when clips are decoded.

    Raises:
        DataError: No such data set, or one that cannot be used.
    """
    if config.root is None:
        raise DataError(
            "data.root=… is needed: a folder with manifest.csv or manifest.jsonl, such a file, or a folder of videos/, "
            "attention_maps/ and labels.csv (`videoclip data synthetic FOLDER` makes a set to try)"
        )
    root = Path(config.root)
    if root.is_dir():
        manifests = [root / name for name in MANIFESTS if (root / name).is_file()]
        if len(manifests) > 1:
            raise DataError(f"{root}: holds {' and '.join(MANIFESTS)}: name one of them in data.root")
        if not manifests and (root / VIDEOS).is_dir():
            return read_layout(root, clip_seconds=config.clip_seconds, skip=config.on_error == "skip")
        if not manifests:
            raise DataError(f"{root}: no clips found; looked for {', '.join(MANIFESTS)}, and {VIDEOS}/ with labels.csv")
        root = manifests[0]
    elif not root.exists():
        raise DataError(
            f"{root}: no such file or folder; data.root is a manifest, or a folder with one or with {VIDEOS}/"
        )
    return read_manifest(root, require_files=config.on_error == "raise")


def is_cut(root: Path) -> bool:
    """Return whether a data set is a folder of videos/, which are cut into clips, rather than a manifest."""
    return root.is_dir() and not any((root / name).is_file() for name in MANIFESTS)


def check_labels(records: Sequence[ClipRecord], classes: int) -> None:
    """Raise DataError if a label is beyond the model's classes.

    Raises:
        DataError: Names the first such clip, and what to set.
    """
    beyond = [record for record in records if record.label is not None and record.label >= classes]
    if beyond:
        most = max(record.label or 0 for record in beyond)
        raise DataError(
            f"clip {beyond[0].clip_id} has the label {beyond[0].label} ({len(beyond)} clip(s) beyond {classes - 1}): "
            f"labels start at 0: correct them, or set model.model_class_num={most + 1}"
        )
