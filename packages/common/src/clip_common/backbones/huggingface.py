"""Weights from the network, once: `prefetch`, and one clear line where they are neither cached nor to be had.

What is cached is used as it is, without asking the network whether there is something newer.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
        pretrained: Tag of the weights of an architecture, or `random` for its tokenizer alone.

    Returns:
        The weights file, or the folder of a transformers model or tokenizer.

    Raises:
        BackboneError: An unknown name or tag, no network, or a file that does not have its checksum.
    """
    from clip_common.backbones.open_clip import find_source, is_architecture, refuse

    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not is_architecture(name):
        refuse(name, pretrained=pretrained)
        files = _files(name, wanted=name)
        if CONFIG not in files or files & {"config.json", "modules.json"}:
            folder = fetch_folder(name, ask=True)
            for file in folder.rglob("*.safetensors"):
                verify(file)
            return folder
        name = f"hf-hub:{name}"
    source = find_source(name, pretrained=pretrained)
    tokenizer = source.tokenizer()
    if source.weights is not None:
        verify(source.weights)
        return source.weights
    if tokenizer.folder is None:
        raise BackboneError(f"{name} {pretrained} has no weights to fetch")
    return tokenizer.folder


def fetch(repository: str, candidates: Sequence[str], *, wanted: str) -> Path:
    """The first of these files of a hub repository, from the cache or from the network.

    Raises:
        BackboneError: Not cached, and no network.
        FileNotFoundError: The repository has none of them.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    with _asking(wanted):
        for candidate in candidates:
            cached = try_to_load_from_cache(repository, candidate)
            if isinstance(cached, str):
                return Path(cached)
        files = _listed(repository)
        for candidate in candidates:
            if candidate in files:
                return Path(hf_hub_download(repository, candidate))
    raise FileNotFoundError(f"{repository} has no {' or '.join(candidates)}")


def lacks_of_model(folder: Path) -> str | None:
    """What a transformers or SentenceTransformer model needs and `folder` does not hold; None for a whole one."""
    listing = folder / "modules.json"
    modules = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else [{"path": "", "type": ""}]
    # a Normalize has no file, and the hub keeps no empty folder
    places = [folder / module["path"] for module in modules if not module["type"].endswith("Normalize")]
    needed = [*places, places[0] / "config.json"]
    index = places[0] / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        needed += [places[0] / shard for shard in sorted(set(shards))]
    else:
        needed.append(places[0] / "model.safetensors")
    return next((str(part.relative_to(folder)) for part in needed if not part.exists()), None)


def lacks_of_tokenizer(folder: Path) -> str | None:
    """As `lacks_of_model`, of a tokenizer."""
    return None if any(folder.glob("tokenizer*")) else "tokenizer.json"


def fetch_folder(
    repository: str,
    *,
    files: Sequence[str] = MODEL_FILES,
    lacks: Callable[[Path], str | None] = lacks_of_model,
    wanted: str | None = None,
    ask: bool = False,
) -> Path:
    """The folder of a transformers or SentenceTransformer model, from the cache or from the network.

    Args:
        repository: `org/name` on the hub.
        files: Patterns of what is downloaded.
        lacks: Names what a folder misses to be complete.
        wanted: What to prefetch, where that is not the repository itself.
        ask: Ask the hub even where the cached folder looks complete.

    Raises:
        BackboneError: Not cached or not wholly, and no network.
    """
    from huggingface_hub import snapshot_download

    wanted = wanted or repository
    with _asking(wanted):
        cached = None if ask else _cached_folder(repository, files=files)
        if cached is not None and lacks(cached) is None:
            return cached
        folder = Path(snapshot_download(repository, allow_patterns=list(files)))
        missing = lacks(folder)
    if missing is not None:  # without a network the snapshot is what other loads left in the cache
        raise unavailable(wanted, FileNotFoundError(f"{repository} without {missing}"))
    return folder


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


def _files(repository: str, *, wanted: str) -> set[str]:
    """Names of the files of a hub repository; of those in the cache where the hub cannot be asked."""
    with _asking(wanted):
        cached = _cached_folder(repository, files=MODEL_FILES)
        try:
            return _listed(repository)
        except Exception:
            if cached is None:
                raise
    return {file.relative_to(cached).as_posix() for file in cached.rglob("*")}


def _listed(repository: str) -> set[str]:
    from huggingface_hub import HfApi

    # one request that is not repeated: without a network, `list_repo_files` goes on trying for half a minute
    return {file.rfilename for file in HfApi().model_info(repository).siblings or ()}


def _cached_folder(repository: str, *, files: Sequence[str]) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(files), local_files_only=True))
    except OSError:
        return None


@contextmanager
def _asking(wanted: str) -> Iterator[None]:
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise BackboneError(f"{wanted}: no name of a model on the hub, expected org/name ({_line(error)})") from error
    # the hub's errors, its HTTP library's and the file system's have no base in common
    except Exception as error:
        raise unavailable(wanted, error) from error


def unavailable(wanted: str, error: Exception) -> BackboneError:
    """The one line for weights that are neither cached nor to be had."""
    return BackboneError(
        f"{wanted}: not in the cache and not to be had from the network ({type(error).__name__}: {_line(error)}); "
        f"run: <package> prefetch {wanted} on a machine with network"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
