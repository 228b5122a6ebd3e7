"""SentenceTransformers and text models of transformers behind the one idea of a tower.

Shapes: B batch, F width, L tokens of a text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from clip_common.backbones.frozen import fingerprint
from clip_common.backbones.huggingface import load_model, load_sentence_transformer, load_tokenizer
from clip_common.backbones.spec import BackboneError
from clip_common.backbones.tokenizers import SentenceTokenizer, Tokenizer, TransformersTokenizer
from clip_common.backbones.trunk import TextTrunk

PARTS = {"clip": "CLIPTextModel", "siglip": "SiglipTextModel"}
"""Class of the text half where a folder holds both halves."""
POOLED = ("clip_text_model", "siglip_text_model")
"""Models whose own pooled token is the feature; any other is averaged over its tokens."""


class SentenceText(TextTrunk):
    """A SentenceTransformer: its features are its sentence embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.width = model.get_embedding_dimension()
        self.depth = getattr(getattr(model[0], "auto_model", model[0]).config, "num_hidden_layers", 0)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        return self.model(dict(tokens))["sentence_embedding"]  # a copy: the modules add their outputs to it


class TransformersText(TextTrunk):
    """A text model of transformers: its pooled token, or the mean over the tokens of the text."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.pooled = model.config.model_type in POOLED
        self.width = model.config.hidden_size
        self.depth = model.config.num_hidden_layers

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        if self.pooled:  # causal, or trained to see its padding: no mask
            return self.model(input_ids=tokens["input_ids"]).pooler_output
        mask_BL = tokens["attention_mask"]
        states_BLF = self.model(input_ids=tokens["input_ids"], attention_mask=mask_BL).last_hidden_state
        weights_BL1 = mask_BL[..., None].to(states_BLF.dtype)
        return (states_BLF * weights_BL1).sum(dim=1) / weights_BL1.sum(dim=1)


@dataclass(frozen=True)
class LoadedText:
    """A trunk with what feeds it."""

    trunk: SentenceText | TransformersText
    tokenizer: Tokenizer
    context_length: int
    fingerprint: str


def load_text(folder: Path) -> LoadedText:
    """Load the text model in `folder`.

    Raises:
        BackboneError: Not a text model, damaged or incomplete weights.
    """
    return _sentence_transformer(folder) if (folder / "modules.json").is_file() else _transformers_model(folder)


def _sentence_transformer(folder: Path) -> LoadedText:
    model = load_sentence_transformer(folder)
    return LoadedText(SentenceText(model), SentenceTokenizer(model), model.max_seq_length, fingerprint(model))


def _transformers_model(folder: Path) -> LoadedText:
    model = load_model(folder, parts=PARTS, optional=("pooler.",))
    if model.main_input_name != "input_ids":
        raise BackboneError(f"{folder} holds a {type(model).__name__}: expected a text model")
    tokenizer = load_tokenizer(folder)
    positions = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
    context = int(min(tokenizer.model_max_length, positions))
    siglip = model.config.model_type == "siglip_text_model"
    wrapped = TransformersTokenizer(tokenizer, context_length=context, pad_to_context=siglip)
    return LoadedText(TransformersText(model), wrapped, context, fingerprint(model))
