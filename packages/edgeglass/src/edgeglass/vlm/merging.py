"""Merge the adapters of a language model into its weights."""

from dataclasses import replace
from pathlib import Path

from clip_common.backbones.frozen import fingerprint_files
from clip_common.backbones.language import find_weights, save_language
from clip_common.runs.files import write_new_folder
from edgeglass.models.adapters import find_adapted, fold_adapters
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
    if not find_adapted(decoder):
        raise ValueError("the model has no adapters to merge: it was trained with phase=projector or decoder.kind=trm")
    with write_new_folder(folder) as draft:
        fold_adapters(decoder)
        save_language(decoder.model, vlm.language.tokenizer, draft / DECODER)
        merged = fingerprint_files(find_weights(draft / DECODER))
        language = replace(vlm.language, spec=replace(vlm.language.spec, name=DECODER, fingerprint=merged))
        lora = replace(vlm.config.decoder.lora, r=0)
        config = replace(
            vlm.config,
            phase="projector",
            start=None,
            decoder=replace(vlm.config.decoder, name=DECODER, lora=lora, quantization="none"),
        )
        save_vlm(draft, vlm.model, config, sight=vlm.sight, language=language)
