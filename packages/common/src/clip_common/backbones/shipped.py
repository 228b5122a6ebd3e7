"""Weights that ship with the package, under the name `tiny`, and their checksums."""

import hashlib
from pathlib import Path
from typing import Literal

from clip_common.backbones.spec import BackboneError

TINY = Path(__file__).parent / "tiny"
"""Folder of the CLIP in this package; its README.md is the model card."""
SUMS = "SHA256SUMS"


def find_shipped(part: Literal["clip", "text", "audio", "decoder"]) -> Path:
    """Return the folder of a tiny model that ships with the package.

    Raises:
        BackboneError: A file of it is absent or damaged.
    """
    folder = TINY if part == "clip" else TINY / part
    check_sums(folder)
    return folder


def check_sums(folder: Path) -> None:
    """Raise BackboneError unless every file of package data has its checksum, as `sha256sum -c` does."""
    sums = folder / SUMS
    if not sums.is_file():
        raise BackboneError(f"{sums} is absent or damaged: install clip-common again")
    for line in sums.read_text(encoding="utf-8").splitlines():
        expected, name = line.split()
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise BackboneError(f"{file} is absent or damaged: install clip-common again")
