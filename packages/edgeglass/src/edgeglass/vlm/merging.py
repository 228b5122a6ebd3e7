"""Merge the adapters of a language model into its weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clip_common.backbones.language import load_language, save_language
from clip_common.runs.files import write_new_folder
from edgeglass.models.vlm.qwen import QwenDecoder
from edgeglass.vlm.files import DECODER, save_vlm
from edgeglass.vlm.vlm import VLM


def merge_adapters(vlm: VLM, folder: Path) -> None:
    """Write a model whose language model holds its adapters: it answers as before and needs no peft.

    The model's own adapters are merged in place: use it no more.

    Args:
        vlm: Loaded with `quantization="none"`.
        folder: Must not exist; written whole or not at all. `folder/decoder` is a plain folder of transformers.

    Raises:
        ValueError: One line: the folder exists, a quantized model, or one without adapters.
    """
    decoder = vlm.model.decoder
    if vlm.language.spec.quantization != "none":
        raise ValueError(
            "merging into quantized weights loses precision: load the model with quantization=none, as `edgeglass "
            "merge` does"
        )
    adapted = find_adapted(decoder) if isinstance(decoder, QwenDecoder) else {}
    if not adapted:
        raise ValueError("the model has no adapters to merge: it was trained with phase=projector or decoder.kind=trm")
    with write_new_folder(folder) as draft:
        for name, layer in adapted.items():
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(decoder.get_submodule(parent), child, layer.get_base_layer())
        save_language(decoder.model, vlm.language.tokenizer, draft / DECODER)
        language = load_language(draft / DECODER, weights=True, dtype=torch.bfloat16)
        lora = replace(vlm.config.decoder.lora, r=0)
        config = replace(
            vlm.config,
            phase="projector",
            start=None,
            decoder=replace(vlm.config.decoder, name=DECODER, lora=lora, quantization="none"),
        )
        save_vlm(draft, vlm.model, config, sight=vlm.sight, language=language)


def find_adapted(decoder: nn.Module) -> dict[str, Any]:
    """Return the layers with adapters, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: part for name, part in decoder.named_modules() if isinstance(part, BaseTunerLayer)}
