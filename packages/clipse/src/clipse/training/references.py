"""Reference features for SANW's similarities: from a frozen copy of the model or from a moving average.

Online references, the embeddings themselves, drift toward the loss that they weight; a moving average drifts slowly, a
frozen copy not at all.

B images, T texts.
"""

import copy

import torch
from torch import Tensor, nn

from clip_common.backbones import Tokens, freeze
from clipse.models.retrieval import RetrievalModel


class ReferenceModel(nn.Module):
    """Copy of the model from before training, frozen or following it as a moving average.

    Args:
        model: The model at the start of training.
        decay: Share of the old value kept at each `update`; 1 keeps the copy frozen.
    """

    def __init__(self, model: RetrievalModel, *, decay: float = 1.0) -> None:
        super().__init__()
        self.image_tower = copy.deepcopy(model.image_tower)
        self.text_tower = copy.deepcopy(model.text_tower)
        self.decay = decay
        freeze(self)

    @torch.no_grad()
    def image(self, images: Tensor, *, rows: bool) -> Tensor:
        """Return (B, ·) features of pixels or of feature rows; a frozen reference takes the rows themselves."""
        if rows:
            return (images if self.decay == 1.0 else self.image_tower.head(images)).float()
        return self.image_tower.pooled(images).float()

    @torch.no_grad()
    def text(self, tokens: Tokens, *, rows: bool) -> Tensor:
        """Return (T, ·) features of tokens or of feature rows."""
        if rows:
            assert isinstance(tokens, Tensor)
            return (tokens if self.decay == 1.0 else self.text_tower.head(tokens)).float()
        return self.text_tower(tokens).float()

    @torch.no_grad()
    def update(self, model: RetrievalModel) -> None:
        """Move toward the model's weights; call after each optimizer step."""
        for tower, source in ((self.image_tower, model.image_tower), (self.text_tower, model.text_tower)):
            for reference, weight in zip(tower.parameters(), source.parameters(), strict=True):
                if weight.requires_grad:
                    reference.lerp_(weight, 1.0 - self.decay)
