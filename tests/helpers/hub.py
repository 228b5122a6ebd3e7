"""A cache of models laid out as the hub's client lays it, so that names on the hub load without a network."""

import hashlib
from pathlib import Path

import pytest


def lay_out_hub(root: Path, repository: str, source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the files of a folder into the cache `root` as a repository, use that cache, and return the snapshot.

    Blobs are named by their sha256 and linked from the snapshot of one commit, to which `refs/main` points.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = root / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abcd"
    for place in (snapshot, folder / "blobs", folder / "refs"):
        place.mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abcd")
    for file in source.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            link = snapshot / file.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    return snapshot
