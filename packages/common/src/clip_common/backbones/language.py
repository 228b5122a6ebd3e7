"""Causal language models: `load_language`, `save_language`, and the fingerprint of their stored weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from clip_common.backbones.frozen import fingerprint_files
from clip_common.backbones.hub import TOKENIZER_FILES, find_folder, find_missing_of_tokenizer
from clip_common.backbones.huggingface import load_model, load_tokenizer, one_line, without_code, without_progress_bar
from clip_common.backbones.quiet import quiet_bitsandbytes
from clip_common.backbones.spec import BackboneError, LanguageSpec
from clip_common.backbones.tokenizers import hash_tokenizer
from clip_common.runs.files import write_new_folder

Quantization = Literal["none", "4bit", "8bit"]


@dataclass
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: A `...ForCausalLM` of transformers, on the CPU, in eval mode, without gradients; None without weights.
        tokenizer: Of transformers; it has an end-of-text token, and perhaps no padding token.
        spec: Name, sizes and fingerprint.
    """

    model: Any
    tokenizer: Any
    spec: LanguageSpec


def load_language(
    name: str | Path,
    *,
    quantization: Quantization = "none",
    dtype: torch.dtype = torch.float32,
    weights: bool = True,
) -> LanguageModel:
    """Load a causal language model on the CPU, frozen, in eval mode.

    It is not guarded against `train()`, which activation checkpointing and the dropout of adapters need.

    Args:
        name: `tiny` (the package's own, no network), or folder or hub name of a causal language model of transformers.
        quantization: Of the linear layers inside the blocks: `4bit` is nf4 with double quantization, computed in
            `dtype`; `8bit` is LLM.int8. Embeddings, norms and head keep `dtype`.
        dtype: Number format of weights that are not quantized.
        weights: False loads configuration and tokenizer alone, and downloads no weights.

    Raises:
        BackboneError: No such model, not a causal language model, damaged or incomplete, or in need of its own code; a
            tokenizer without an end-of-text token; a quantization that cannot run here, or a model stored quantized.
    """
    if weights:
        check_quantization(quantization)
        folder = find_folder(name, part="decoder")
    else:
        folder = find_folder(name, part="decoder", files=TOKENIZER_FILES, find_missing=find_missing_of_tokenizer)
    config = _load_config(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise BackboneError(f"{folder}: its tokenizer has no end-of-text token: set eos_token in tokenizer_config.json")
    model = None
    if weights:
        settings = {"dtype": dtype} | _make_quantization(quantization, dtype)
        model = load_model(folder, parts={}, optional=(), default="AutoModelForCausalLM", **settings)
        if quantization == "4bit":
            _keep_layout(model)
        model.requires_grad_(False).eval()
    text = config.get_text_config()
    spec = LanguageSpec(
        name=str(name),
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        context=int(min(getattr(text, "max_position_embeddings", None) or torch.inf, tokenizer.model_max_length)),
        fingerprint=fingerprint_files(find_weights(folder)) if weights else hash_tokenizer(tokenizer),
        quantization=quantization,
        stop_ids=_find_stop_ids(folder, tokenizer, default=text.eos_token_id),
    )
    return LanguageModel(model, tokenizer, spec)


def save_language(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a plain folder of transformers, whole or not at all, that `load_language` and other programs read.

    Args:
        model: Of transformers, with adapters merged; its weights keep their dtype.
        tokenizer: Of transformers.
        folder: Must not exist.

    Raises:
        ValueError: The folder exists.
        BackboneError: A quantized model.
    """
    if getattr(model, "is_quantized", False):
        raise BackboneError(f"{folder}: the model is quantized, which loses precision: save it loaded with none")
    with write_new_folder(folder) as draft:
        with without_progress_bar():
            model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        for file in draft.glob("*.safetensors"):
            file.chmod(0o644)  # safetensors makes files that only their owner may read


def make_cache() -> Any:
    """Return an empty cache of keys and values: `update(key_BHTd, value_BHTd, layer)` appends, and returns all."""
    from transformers import DynamicCache

    return DynamicCache()


def check_quantization(quantization: Quantization, device: torch.device | str = "cpu") -> None:
    """Raise BackboneError unless a quantized layer runs on `device`."""
    if quantization == "none":
        return
    with _quantization_errors(quantization, device):
        quiet_bitsandbytes()
        import accelerate  # noqa: F401  transformers needs it for this
        import bitsandbytes

        layer = bitsandbytes.nn.Linear4bit if quantization == "4bit" else bitsandbytes.nn.Linear8bitLt
        with torch.inference_mode():
            layer(64, 64).to(device)(torch.zeros(1, 64, device=device))


@contextmanager
def _quantization_errors(quantization: Quantization, device: torch.device | str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise BackboneError(
            f"quantization={quantization} needs bitsandbytes and accelerate ({one_line(error)}): install "
            "clip-common[quantize], or set it to none"
        ) from error
    # a library without kernels for the device raises anything
    except Exception as error:
        raise BackboneError(
            f"quantization={quantization} does not run on {device} with this bitsandbytes ({one_line(error)}): set it "
            "to none, or use another device"
        ) from error


def find_weights(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder: one, or the shards of its index.

    Raises:
        BackboneError: It has none.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    if not (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        raise BackboneError(f"{folder} has no {SAFE_WEIGHTS_NAME}: save the model again with transformers")
    index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
    return [folder / shard for shard in sorted(set(index["weight_map"].values()))]


def _load_config(folder: Path) -> Any:
    """Return the configuration of a causal language model that is stored with its full precision."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        with without_code():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # a damaged file raises anything
    except Exception as error:
        raise BackboneError(f"{folder} cannot be loaded as a transformers model: {one_line(error)}") from error
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    stored = config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, config.model_type)]
    if not known.intersection(stored):
        raise BackboneError(f"{folder} holds a {stored[0]}: expected a causal language model, such as Qwen2ForCausalLM")
    if getattr(config, "quantization_config", None) is not None:
        raise BackboneError(
            f"{folder} is stored quantized: give the model in its full precision, and quantization=4bit or 8bit"
        )
    return config


def _make_quantization(quantization: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    """Return the settings of `from_pretrained` for a quantization, on the CPU even if there is a GPU."""
    from transformers import BitsAndBytesConfig

    if quantization == "none":
        return {}
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    chosen = {"load_in_4bit": True} | nf4 if quantization == "4bit" else {"load_in_8bit": True}
    return {"quantization_config": BitsAndBytesConfig(**chosen), "device_map": {"": "cpu"}}


def _keep_layout(model: Any) -> None:
    """Keep bitsandbytes from packing the weights anew in the first forward pass on a CPU with AVX512-BF16.

    The packed layout rounds the scales to bfloat16, cannot be undone exactly, and gets no gradient: a model that was
    evaluated once would no longer train.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _find_stop_ids(folder: Path, tokenizer: Any, *, default: int | list[int] | None) -> tuple[int, ...]:
    """Return the ids that end an answer: the tokenizer's, the generation settings', and that of a turn of a chat."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        try:
            default = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
        # a damaged file raises anything
        except Exception as error:
            raise BackboneError(f"{folder}/generation_config.json cannot be read: {one_line(error)}") from error
    others = [] if default is None else [default] if isinstance(default, int) else default
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *others, *_find_turn_ends(folder, tokenizer)]))


def _find_turn_ends(folder: Path, tokenizer: Any) -> list[int]:
    """Return the id of the special token with which the chat template ends an answer, if it does."""
    if tokenizer.chat_template is None:
        return []
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    # a template is a program: it raises anything
    except Exception as error:
        raise BackboneError(f"{folder}: its chat template cannot be read: {one_line(error)}") from error
    end = tokenizer(text.rpartition("answer")[2].lstrip(), add_special_tokens=False)["input_ids"][:1]
    return [number for number in end if number in tokenizer.added_tokens_decoder]
