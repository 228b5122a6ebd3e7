"""The features that SANW's similarities are computed from: online, frozen, or a moving average of the model.

Online references drift toward the loss that they weight; the other two do not, or slowly.
B images, T texts.
"""

import copy

import torch
from torch import Tensor, nn

from clip_common.backbones import Tokens, freeze
from clipse.models.retrieval import RetrievalModel


class ReferenceModel(nn.Module):
    """A copy of the model, made before training, that follows it by a moving average or not at all.

    Args:
        model: The model as training begins.
        decay: Share of the old value kept at each `update`; 1 never moves (frozen).
    """

    def __init__(self, model: RetrievalModel, *, decay: float = 1.0) -> None:
        super().__init__()
        self.image_tower = copy.deepcopy(model.image_tower)
        self.text_tower = copy.deepcopy(model.text_tower)
        self.decay = decay
        freeze(self)

    @torch.no_grad()
    def image(self, images: Tensor, *, rows: bool) -> Tensor:
        """(B, ·) of pixels, or of rows of a locked trunk: those are references themselves where nothing moves."""
        if rows:
            return (images if self.decay == 1.0 else self.image_tower.head(images)).float()
        return self.image_tower.pooled(images).float()

    @torch.no_grad()
    def text(self, tokens: Tokens, *, rows: bool) -> Tensor:
        """(T, ·) of tokens, or of rows of a locked trunk."""
        if rows:
            assert isinstance(tokens, Tensor)
            return (tokens if self.decay == 1.0 else self.text_tower.head(tokens)).float()
        return self.text_tower(tokens).float()

    @torch.no_grad()
    def update(self, model: RetrievalModel) -> None:
        """Move towards the model's weights, after an optimizer step."""
        for tower, source in ((self.image_tower, model.image_tower), (self.text_tower, model.text_tower)):
            for reference, weight in zip(tower.parameters(), source.parameters(), strict=True):
                if weight.requires_grad:
                    reference.lerp_(weight, 1.0 - self.decay)
