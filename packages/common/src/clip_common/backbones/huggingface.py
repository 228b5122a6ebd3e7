"""Calls into transformers and sentence-transformers: load models, tokenizers and extractors from local files, quietly.

Code that comes with a model is never run and never asked about: whatever needs it is refused in one line.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from clip_common.backbones.quiet import quiet_bitsandbytes
from clip_common.backbones.spec import BackboneError


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
    takes: str | None = None,
    expected: str = "",
    **settings: Any,
) -> Any:
    """Load a complete transformers model from local files.

    Args:
        folder: config.json and weights.
        parts: Class to load by model type, as it is found in transformers.
        optional: Parts of names of weights that may be absent.
        renamed: Pattern of names in the file to names in the class, for a class that is part of the stored model.
        default: Class for other model types.
        takes: Main input of the model: `pixel_values`, `input_ids`; None: any.
        expected: Kind of model that takes it, for the message.
        settings: Others of `from_pretrained`; its `dtype` is float32 here.

    Raises:
        BackboneError: Not a model folder, damaged, in need of its own code, or incomplete: transformers would draw
            missing weights at random.
    """
    import transformers

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with without_code(), without_progress_bar(), without_report():
            config = transformers.AutoConfig.from_pretrained(folder, **local)
            kind = config.model_type
            loader = attrgetter(parts.get(kind, default))(transformers)
            check_input(folder, config, loader, takes=takes, expected=expected)
            settings = {"dtype": torch.float32, "output_loading_info": True, "key_mapping": renamed} | settings
            model, report = loader.from_pretrained(folder, **settings, **local)
    except BackboneError:
        raise
    # a damaged folder raises anything from OSError to safetensors' own kind
    except Exception as error:
        raise BackboneError(f"{folder} cannot be loaded as a transformers model: {one_line(error)}") from error
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in optional))
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler, missing = None, []  # saved without: its weights would be random
    if missing:
        raise BackboneError(f"{folder} is incomplete: {len(missing)} weights are missing ({missing[0]}…)")
    return model


def check_input(folder: Path, config: Any, loader: Any, *, takes: str | None, expected: str) -> None:
    """Raise BackboneError if the class that `loader` would load takes another input, before its weights are read."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    kind = MODEL_MAPPING.get(type(config), None) if loader.__name__ == "AutoModel" else loader
    kind = kind[0] if isinstance(kind, tuple) else kind
    if takes is not None and kind is not None and kind.main_input_name != takes:
        raise BackboneError(f"{folder} holds a {kind.__name__}: expected {expected}")


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
        with without_code(), without_progress_bar(), without_report():
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
