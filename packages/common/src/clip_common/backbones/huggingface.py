"""Every call into transformers, sentence-transformers and the hub: find and fetch files, load models and tokenizers.

Cached files are used without asking the network for newer ones. Code that comes with a model is never run and never
asked about: whatever needs it is refused in one line.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch

from clip_common.backbones.quiet import quiet_bitsandbytes
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
    from clip_common.backbones.open_clip import check_unused, find_origin, is_architecture

    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not is_architecture(name):
        check_unused(name, pretrained=pretrained)
        files = _list_known_files(name, wanted=name)
        if CONFIG not in files or files & {"config.json", "modules.json"}:
            folder = fetch_folder(name, ask=True)
            for file in folder.rglob("*.safetensors"):
                check_sum(file)
            return folder
        name = f"hf-hub:{name}"
    origin = find_origin(name, pretrained=pretrained)
    tokenizer = origin.load_tokenizer()
    if origin.weights is not None:
        check_sum(origin.weights)
        return origin.weights
    if tokenizer.folder is None:
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
    return None if any(folder.glob("tokenizer*")) else "tokenizer.json"


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


@contextmanager
def without_code() -> Iterator[None]:
    """Refuse code that comes with a model in every load inside, also where a library has no argument for it.

    transformers asks "Do you wish to run the custom code?" in calls without `trust_remote_code`, such as those of
    open_clip and of its own models. With no time to answer it raises ValueError instead.
    """
    quiet_bitsandbytes()
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar over a load of seconds."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def without_report() -> Iterator[None]:
    """Keep transformers from listing the weights that it does not use, such as those of the other half of a model."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def load_model(
    folder: Path,
    *,
    parts: Mapping[str, str],
    optional: tuple[str, ...],
    renamed: Mapping[str, str] | None = None,
    default: str = "AutoModel",
    **settings: Any,
) -> Any:
    """Load a complete transformers model from local files.

    Args:
        folder: config.json and weights.
        parts: Class to load by model type, as it is found in transformers.
        optional: Parts of names of weights that may be absent.
        renamed: Pattern of names in the file to names in the class, for a class that is part of the stored model.
        default: Class for other model types.
        settings: Others of `from_pretrained`; its `dtype` is float32 here.

    Raises:
        BackboneError: Not a model folder, damaged, in need of its own code, or incomplete: transformers would draw
            missing weights at random.
    """
    import transformers

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with without_code(), without_progress_bar(), without_report():
            kind = transformers.AutoConfig.from_pretrained(folder, **local).model_type
            loader = attrgetter(parts.get(kind, default))(transformers)
            settings = {"dtype": torch.float32, "output_loading_info": True, "key_mapping": renamed} | settings
            model, report = loader.from_pretrained(folder, **settings, **local)
    # a damaged folder raises anything from OSError to safetensors' own kind
    except Exception as error:
        raise BackboneError(f"{folder} cannot be loaded as a transformers model: {one_line(error)}") from error
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in optional))
    if missing:
        raise BackboneError(f"{folder} is incomplete: {len(missing)} weights are missing ({missing[0]}…)")
    return model


def load_mel_extractor(folder: Path, *, mels: int) -> Any:
    """Load Whisper's extractor of log-mel spectrograms, without its random dither.

    Args:
        folder: With preprocessor_config.json, or processor_config.json as transformers 5 writes it; if it has neither,
            the settings are those of all Whisper models.
        mels: Bands, for a folder with neither.

    Raises:
        BackboneError: A damaged file, or one of another kind of model.
    """
    import transformers

    if not any((folder / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
        return transformers.WhisperFeatureExtractor(feature_size=mels)
    try:
        return transformers.WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True, dither=0.0)
    # a damaged file raises anything
    except Exception as error:
        raise BackboneError(f"{folder} has no settings of spectrograms that can be read: {one_line(error)}") from error


def load_tokenizer(folder: Path) -> Any:
    """Load a tokenizer of transformers from local files.

    Raises:
        BackboneError: No tokenizer, a damaged one, or one that needs its own code.
    """
    import transformers

    try:
        with without_code():
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # a damaged folder raises anything
    except Exception as error:
        raise BackboneError(f"{folder} has no tokenizer that transformers can read: {one_line(error)}") from error


def load_sentence_transformer(folder: Path) -> Any:
    """Load a SentenceTransformer in float32 on the CPU from local files.

    Raises:
        BackboneError: Not a SentenceTransformer, damaged, or with modules that need its own code.
    """
    from sentence_transformers import SentenceTransformer

    try:
        with without_code(), without_progress_bar():
            return SentenceTransformer(
                str(folder),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32},
            )
    # a damaged folder raises anything
    except Exception as error:
        raise BackboneError(f"{folder} cannot be loaded as a SentenceTransformer: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """Return the message of an error of another library as one line, without advice to run code."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs code of its own to run, which is refused; use a model that transformers itself implements"
    return text[:160] or type(error).__name__
