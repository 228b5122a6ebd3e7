"""Text trunks: SentenceTransformers and text models of transformers; `load_text`.

Shapes: B batch, F width, L tokens of a text.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from clip_common.backbones.encoder import TextEncoder, TextFeed
from clip_common.backbones.frozen import fingerprint
from clip_common.backbones.hub import find_folder, find_missing_of_tokenizer
from clip_common.backbones.huggingface import load_model, load_sentence_transformer, load_tokenizer
from clip_common.backbones.spec import BackboneError, TextSpec
from clip_common.backbones.tokenizers import SentenceTokenizer, Tokenizer, TransformersTokenizer
from clip_common.backbones.towers import TextTower
from clip_common.backbones.trunk import TextTrunk

PARTS = {
    "clip": "CLIPTextModel",
    "siglip": "SiglipTextModel",
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
}
"""Class to load from a folder that holds both an image and a text model, or also a decoder."""
T5_CONTEXT = 512
"""Most tokens of a model without a table of positions, unless its tokenizer says less."""
POOLED = ("clip_text_model", "siglip_text_model")
"""Kinds of models whose pooled token is the feature; others are averaged over their tokens."""


class SentenceText(TextTrunk):
    """A SentenceTransformer: its features are its sentence embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width = model.get_embedding_dimension()
        self.depth = getattr(getattr(model[0], "auto_model", model[0]).config, "num_hidden_layers", 0)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        return self.model(dict(tokens))["sentence_embedding"]  # a copy, since the modules add their outputs to it


class TransformersText(TextTrunk):
    """A text model of transformers: its pooled token, or the mean over the tokens of the text."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.pooled = model.config.model_type in POOLED
        self.width = model.config.hidden_size
        self.depth = model.config.num_hidden_layers

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        if self.pooled:  # causal, or trained with its padding visible: no mask
            return self.model(input_ids=tokens["input_ids"]).pooler_output
        mask_BL = tokens["attention_mask"]
        states_BLF = self.model(input_ids=tokens["input_ids"], attention_mask=mask_BL).last_hidden_state
        weights_BL1 = mask_BL[..., None].to(states_BLF.dtype)
        return (states_BLF * weights_BL1).sum(dim=1) / weights_BL1.sum(dim=1)


def load_text(name: str | Path) -> TextEncoder:
    """Load a text model, in eval mode, without a head: its features are its embeddings.

    Args:
        name: `tiny` (the package's own, no network), or folder or hub name of a SentenceTransformer, or of a
            transformers text model: CLIP's and SigLIP's give their pooled token, any other the mean over its tokens.

    Raises:
        BackboneError: No such model, not a text model, damaged or incomplete weights.
    """
    folder = find_folder(name, part="text")
    is_sentence_transformer = (folder / "modules.json").is_file()
    load = _load_sentence_transformer if is_sentence_transformer else _load_text_model
    trunk, tokenizer, context_length = load(folder)
    spec = TextSpec(
        name=str(name),
        width=trunk.width,
        depth=trunk.depth,
        embed_dim=trunk.width,
        fingerprint=fingerprint(trunk.model),
        context_length=context_length,
    )
    return TextEncoder(TextTower(trunk).eval(), TextFeed(tokenizer), spec)


def _load_sentence_transformer(folder: Path) -> tuple[SentenceText, Tokenizer, int]:
    model = load_sentence_transformer(folder)
    return SentenceText(model), SentenceTokenizer(model), model.max_seq_length


def _load_text_model(folder: Path) -> tuple[TransformersText, Tokenizer, int]:
    model = load_model(folder, parts=PARTS, optional=(), takes="input_ids", expected="a text model")
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    if find_missing_of_tokenizer(folder) is not None:
        raise BackboneError(f"{folder} has no tokenizer: save the model's tokenizer there too (save_pretrained)")
    tokenizer = load_tokenizer(folder)
    positions = getattr(model.config, "max_position_embeddings", T5_CONTEXT)  # T5's are relative
    context = int(min(tokenizer.model_max_length, positions))
    siglip = model.config.model_type == "siglip_text_model"
    wrapped = TransformersTokenizer(tokenizer, context_length=context, pad_to_context=siglip)
    return TransformersText(model), wrapped, context
