"""Weights from the network, once: `prefetch`, and one clear line where they are neither cached nor to be had.

What is cached is used as it is, without asking the network whether there is something newer.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_common.backbones.spec import BackboneError

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
CONFIG = "open_clip_config.json"
TOKENIZER_FILES = ("*.json", "*.txt", "*.model")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors")
"""What a transformers or SentenceTransformer repository is read from."""


def prefetch(name: str, pretrained: str | None = None) -> Path:
    """Download what `load_clip` or `load_dual` needs, verify its checksum, and leave it in the cache.

    Args:
        name: open_clip architecture, `hf-hub:org/name`, or `org/name` of a transformers or SentenceTransformer model.
        pretrained: Tag of the weights of an architecture.

    Returns:
        The weights file, or the folder of a transformers model.

    Raises:
        BackboneError: An unknown name or tag, no network, or a file that does not have its checksum.
    """
    from clip_common.backbones.clip import find_source

    repository = name.removeprefix("hf-hub:")
    if name.startswith("hf-hub:") or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        if not _is_clip(repository, wanted=name):
            folder = fetch_folder(repository)
            for file in folder.rglob("*.safetensors"):
                verify(file)
            return folder
        name = f"hf-hub:{repository}"
    source = find_source(name, pretrained=pretrained)
    if source.weights is None:
        raise BackboneError(f"{name} {pretrained or ''} has no weights to fetch")
    verify(source.weights)
    source.tokenizer()
    return source.weights


def fetch(repository: str, candidates: Sequence[str], *, wanted: str) -> Path:
    """The first of these files of a hub repository, from the cache or from the network.

    Raises:
        BackboneError: Not cached, and no network.
        FileNotFoundError: The repository has none of them.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    for candidate in candidates:
        cached = try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return Path(cached)
    try:
        files = set(HfApi().list_repo_files(repository))
        for candidate in candidates:
            if candidate in files:
                return Path(hf_hub_download(repository, candidate))
    except (OSError, HfHubHTTPError, RuntimeError) as error:
        raise unavailable(wanted, error) from error
    raise FileNotFoundError(f"{repository} has no {' or '.join(candidates)}")


def fetch_folder(
    repository: str, *, files: Sequence[str] = MODEL_FILES, needs: str = "*.safetensors", wanted: str | None = None
) -> Path:
    """The folder of a transformers or SentenceTransformer model, from the cache or from the network.

    Args:
        repository: `org/name` on the hub.
        files: Patterns of what is downloaded.
        needs: Pattern of what a cached folder must hold to be complete.
        wanted: What to prefetch, where that is not the repository itself.

    Raises:
        BackboneError: Not cached, and no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    folder = _cached_folder(repository, needs=needs)
    if folder is not None:
        return folder
    try:
        return Path(snapshot_download(repository, allow_patterns=list(files)))
    except (OSError, HfHubHTTPError, RuntimeError) as error:
        raise unavailable(wanted or repository, error) from error


def fetch_tag(name: str, tag: str, config: dict[str, Any]) -> Path:
    """The weights of an open_clip pretrained tag, from the cache or from the network.

    Raises:
        BackboneError: Not cached, and no network.
    """
    import open_clip

    wanted = f"{name} {tag}"
    if not config.get("hf_hub"):
        try:
            return Path(open_clip.download_pretrained(config))
        except (OSError, RuntimeError) as error:
            raise unavailable(wanted, error) from error
    repository, _, file = config["hf_hub"].rpartition("/")
    candidates = (str(Path(file).with_suffix(".safetensors")), file) if file else WEIGHTS
    return fetch(repository, candidates, wanted=wanted)


def verify(file: Path) -> None:
    """Compare a cached file with the checksum that its name in the cache carries, where it carries one.

    Raises:
        BackboneError: They differ.
    """
    blob = file.resolve()  # the hub's cache names large files by their sha256
    stated = re.fullmatch(r"[0-9a-f]{64}", blob.name)
    if stated is None:
        return
    with blob.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != stated[0]:
        raise BackboneError(f"{blob} does not have its checksum (sha256 {actual[:12]}…): delete it and prefetch again")


def _is_clip(repository: str, *, wanted: str) -> bool:
    if (folder := _cached_folder(repository, needs="*.safetensors")) is not None:
        return (folder / CONFIG).exists()
    try:
        fetch(repository, (CONFIG,), wanted=wanted)
    except FileNotFoundError:
        return False
    return True


def _cached_folder(repository: str, *, needs: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except OSError:
        return None
    return folder if any(folder.glob(needs)) else None


def unavailable(wanted: str, error: Exception) -> BackboneError:
    """The one line for weights that are neither cached nor to be had."""
    reason = " ".join(str(error).split())[:120]
    return BackboneError(
        f"{wanted}: not in the cache and not to be had from the network ({type(error).__name__}: {reason}); "
        f"run: <package> prefetch {wanted} on a machine with network"
    )
