"""Files of models by name: found in folders and in the hub's cache, fetched from the hub, checksums verified.

Cached files are used without asking the network for newer ones.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from clip_common.backbones.huggingface import one_line
from clip_common.backbones.shipped import find_shipped
from clip_common.backbones.spec import BackboneError

WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
)
"""Names of the weights beside an open_clip_config.json, in the order of open_clip's preference."""
CONFIG = "open_clip_config.json"
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors")
"""Files of a transformers or SentenceTransformer repository that are downloaded."""


def prefetch(name: str, pretrained: str | None = None) -> Path:
    """Download the files of a model (`load_clip`, `load_dual`, `load_audio`) into the cache; verify their checksums.

    Args:
        name: open_clip architecture, `hf-hub:org/name`, or `org/name` of a transformers or SentenceTransformer model.
        pretrained: Tag of the weights of an architecture, or `random` for its tokenizer alone.

    Returns:
        The weights file, or the folder of a transformers model or tokenizer.

    Raises:
        BackboneError: An unknown name or tag, no network, or a file that does not have its checksum.
    """
    from clip_common.backbones.origins import check_unused, find_origin, is_repository
    from clip_common.backbones.tokenizers import ClipTokenizer

    if is_repository(name):
        check_unused(name, pretrained=pretrained)
        files = _list_known_files(name, wanted=name)
        if CONFIG not in files or files & {"config.json", "modules.json"}:
            folder = fetch_folder(name, ask=True)
            for file in folder.rglob("*.safetensors"):
                check_sum(file)
            return folder
        name = f"hf-hub:{name}"
    origin = find_origin(name, pretrained=pretrained)
    if origin.transformers is not None and origin.folder is not None:
        return origin.folder
    tokenizer = origin.load_tokenizer()
    if origin.weights is not None:
        check_sum(origin.weights)
        return origin.weights
    if not isinstance(tokenizer, ClipTokenizer) or tokenizer.folder is None:
        raise BackboneError(f"{name} {pretrained} has no weights to fetch")
    return tokenizer.folder


def fetch(repository: str, candidates: Sequence[str], *, wanted: str) -> Path:
    """Return the first of these files that a hub repository has, from the cache or from the network.

    Raises:
        BackboneError: Not cached, and no network.
        FileNotFoundError: The repository has none of them.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    with _ask_hub(wanted):
        for candidate in candidates:
            cached = try_to_load_from_cache(repository, candidate)
            if isinstance(cached, str):
                return Path(cached)
        files = _list_files(repository)
        for candidate in candidates:
            if candidate in files:
                return Path(hf_hub_download(repository, candidate))
    raise FileNotFoundError(f"{repository} has no {' or '.join(candidates)}")


def find_missing_of_model(folder: Path) -> str | None:
    """Return the first file that a transformers or SentenceTransformer model lacks; None if it is complete."""
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


def find_missing_of_tokenizer(folder: Path) -> str | None:
    """Return the file that a tokenizer lacks; None if it is complete."""
    found = any(any(folder.glob(pattern)) for pattern in ("tokenizer*", "vocab*", "*.model"))
    return None if found else "tokenizer.json"


def fetch_folder(
    repository: str,
    *,
    files: Sequence[str] = MODEL_FILES,
    find_missing: Callable[[Path], str | None] = find_missing_of_model,
    wanted: str | None = None,
    ask: bool = False,
) -> Path:
    """Return the folder of a transformers or SentenceTransformer model, from the cache or from the network.

    Args:
        repository: `org/name` on the hub.
        files: Patterns of the files to download.
        find_missing: Returns the file that a folder lacks, if any.
        wanted: Name to prefetch, if that is not the repository itself.
        ask: Ask the hub even if the cached folder looks complete.

    Raises:
        BackboneError: Not or only partly cached, and no network.
    """
    from huggingface_hub import snapshot_download

    wanted = wanted or repository
    with _ask_hub(wanted):
        cached = None if ask else _find_cached_folder(repository, files=files)
        if cached is not None and find_missing(cached) is None:
            return cached
        folder = Path(snapshot_download(repository, allow_patterns=list(files)))
        missing = find_missing(folder)
    if missing is not None:  # without a network the snapshot holds only what other loads left in the cache
        raise make_unavailable(wanted, FileNotFoundError(f"{repository} without {missing}"))
    return folder


def find_folder(name: str | Path, *, part: Literal["text", "audio", "decoder"] | None = None, **files: Any) -> Path:
    """Return the folder of a model: the folder itself, or that of a hub name, from the cache or the network.

    Args:
        name: Folder, hub name, or `tiny` with `part`.
        part: Model of the package that `tiny` names; None: there is none.
        files: What to download and to find in the cache, as for `fetch_folder`.

    Raises:
        BackboneError: No such model; not cached, and no network; a damaged file of the package.
    """
    if part is not None and name == "tiny":
        return find_shipped(part)
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, str) and re.fullmatch(r"(hf-hub:)?[\w.-]+(/[\w.-]+)?", name):
        return fetch_folder(name.removeprefix("hf-hub:"), **files)
    raise BackboneError(f"{name}: no such folder, and not a name of a model on the hub (org/name)")


def find_cached_model(repository: str) -> Path | None:
    """Return the cached folder of a transformers model; None if it is not there or not complete."""
    from huggingface_hub.errors import HFValidationError

    try:
        folder = _find_cached_folder(repository, files=MODEL_FILES)
    except HFValidationError:
        return None
    return folder if folder is not None and find_missing_of_model(folder) is None else None


def fetch_tag(name: str, tag: str, config: dict[str, Any]) -> Path:
    """Return the weights of an open_clip pretrained tag, from the cache or from the network.

    Raises:
        BackboneError: Not cached, and no network.
    """
    import open_clip

    wanted = f"{name} {tag}"
    if not config.get("hf_hub"):
        try:
            return Path(open_clip.download_pretrained(config))
        except (OSError, RuntimeError) as error:
            raise make_unavailable(wanted, error) from error
    repository, _, file = config["hf_hub"].rpartition("/")
    candidates = (str(Path(file).with_suffix(".safetensors")), file) if file else WEIGHTS
    return fetch(repository, candidates, wanted=wanted)


def check_sum(file: Path) -> None:
    """Raise BackboneError if a cached file does not have the checksum in its name.

    The hub's cache names large files by their sha256; other files pass.

    Raises:
        BackboneError: The checksums differ.
    """
    blob = file.resolve()
    stated = re.fullmatch(r"[0-9a-f]{64}", blob.name)
    if stated is None:
        return
    with blob.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != stated[0]:
        raise BackboneError(f"{blob} does not have its checksum (sha256 {actual[:12]}…): delete it and prefetch again")


def _list_known_files(repository: str, *, wanted: str) -> set[str]:
    """Return the names of the files of a hub repository, or of the cached ones if the hub cannot be asked."""
    with _ask_hub(wanted):
        cached = _find_cached_folder(repository, files=MODEL_FILES)
        try:
            return _list_files(repository)
        except Exception:
            if cached is None:
                raise
    return {file.relative_to(cached).as_posix() for file in cached.rglob("*")}


def _list_files(repository: str) -> set[str]:
    from huggingface_hub import HfApi

    # a single request: without a network, `list_repo_files` retries for half a minute
    return {file.rfilename for file in HfApi().model_info(repository).siblings or ()}


def _find_cached_folder(repository: str, *, files: Sequence[str]) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=list(files), local_files_only=True))
    except OSError:
        return None


@contextmanager
def _ask_hub(wanted: str) -> Iterator[None]:
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise BackboneError(
            f"{wanted}: not a name of a model on the hub, expected org/name ({one_line(error)})"
        ) from error
    # errors of the hub, of its HTTP library and of the file system have no common base
    except Exception as error:
        raise make_unavailable(wanted, error) from error


def make_unavailable(wanted: str, error: Exception) -> BackboneError:
    """Return the error for weights that are neither cached nor available."""
    return BackboneError(
        f"{wanted}: not in the cache and not available from the network ({type(error).__name__}: {one_line(error)}); "
        f"run: <package> prefetch {wanted} on a machine with network"
    )
