"""What training minimises: cross-entropy, the contrastive loss of videos and maps, and the token loss.

Legend: B clips, K classes, D width of the embeddings, C channels of a map, T, H, W frames and pixels of a map, or the
grid of the tokens; N = T·H·W tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_common.losses import contrastive_loss
from videoclip.config import LossConfig, ModelConfig
from videoclip.models import Output
from videoclip.models.pooling import resize_to_grid, varies
from videoclip.models.stem import upcast

FLOOR = 1e-6
"""Share of its mean that is added to each token's energy where its logarithm is taken: ReLU leaves zeros."""


@dataclass(frozen=True)
class LossOutput:
    """`total` = classification + clip_weight·contrastive + lambda_token·token; each scalar, before its weight.

    What has no weight is not computed, and 0.
    """

    total: Tensor
    classification: Tensor
    contrastive: Tensor
    token: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        """All but the total, by name, for a log."""
        return {"classification": self.classification, "contrastive": self.contrastive, "token": self.token}


class VideoClipLoss(nn.Module):
    """The loss of a batch.

    Args:
        model: `lambda_token`, `token_loss`, `token_source`.
        loss: `clip_weight`, and which clips are no negatives or are positives of each other.
    """

    def __init__(self, model: ModelConfig, loss: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(
        self,
        output: Output,
        *,
        map_BCTHW: Tensor,
        label_B: Tensor,
        subject_B: Tensor,
        regions_B: Tensor,
        scale: Tensor | float,
    ) -> LossOutput:
        """Loss of B clips; the contrastive part, across processes, is that of the clips of all of them.

        Clips without a valid map take no part in the contrastive and in the token loss. A part in which nothing takes
        part is 0.

        Args:
            output: Of the model, with the embeddings where `clip_weight` is not 0.
            map_BCTHW: What the model was given.
            label_B: Long; −1 is unknown, and left out of the cross-entropy.
            subject_B: Equal ids are clips of one subject.
            regions_B: Equal ids are clips in which the same regions were attended.
            scale: One over the temperature.
        """
        classification = cross_entropy(output.logits, label_B)
        contrastive = token = classification.new_zeros(())
        if self.loss.clip_weight:
            assert output.video_embed is not None
            assert output.attn_embed is not None
            # With several processes all must make this call, one whose clips all lack maps included.
            found = output.map_valid.nonzero()[:, 0]
            contrastive = contrastive_loss(
                output.video_embed[found],
                output.attn_embed[found],
                scale=scale,
                exclude=subject_B[found] if self.loss.exclude == "subject" else None,
                positive=regions_B[found] if self.loss.positive == "regions" else None,
            )
        if self.model.lambda_token:
            tokens = output.gated_tokens if self.model.token_source == "gated" else output.video_tokens
            assert tokens is not None  # the configuration sees to it
            token = token_loss(tokens, map_BCTHW, valid_B=output.map_valid, kind=self.model.token_loss)
        total = classification + self.loss.clip_weight * contrastive + self.model.lambda_token * token
        return LossOutput(total, classification, contrastive, token)


def cross_entropy(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """The mean over labelled clips; 0 without any."""
    total = F.cross_entropy(upcast(logits_BK), label_B, ignore_index=-1, reduction="sum")
    return total / (label_B != -1).sum().clamp_min(1)


def token_loss(
    tokens_BCTHW: Tensor, map_BCTHW: Tensor, *, valid_B: Tensor, kind: Literal["corr", "kl", "mse"] = "corr"
) -> Tensor:
    """How little the energy of the tokens follows the map: the mean over clips, a scalar.

    e = the mean over channels of the squared tokens, a = the mean over its channels of the map, on the tokens' grid and
    from 0 to 1 there.

        corr   1 − Pearson(e, a)
        kl     Σ p·ln(p/q), p = a / Σ a, q = e / Σ e
        mse    the mean of (ê − a)², ê = e stretched to 0 to 1

    Args:
        tokens_BCTHW: Of any float dtype.
        map_BCTHW: Of any size.
        valid_B: Clips that count. A clip whose energy or map is the same everywhere does not, in any case.
        kind: Which of the three.
    """
    e_BN = upcast(tokens_BCTHW).square().mean(dim=1).flatten(1)
    a_B1THW, varies_B1 = resize_to_grid(map_BCTHW.mean(dim=1, keepdim=True), tokens_BCTHW.shape[2:])
    a_BN = a_B1THW.flatten(1)
    counted_B = valid_B & varies_B1[:, 0] & varies(e_BN.detach())
    # numbers of a clip that does not count stand for its own, so that its gradient is 0 and not 0·∞
    e_BN = torch.where(counted_B[:, None], e_BN, torch.arange(e_BN.shape[1]).to(e_BN))
    a_BN = torch.where(counted_B[:, None], a_BN, torch.arange(a_BN.shape[1]).to(a_BN))
    each_B = {"corr": _decorrelation, "kl": _divergence, "mse": _difference}[kind](e_BN, a_BN)
    return torch.where(counted_B, each_B, 0.0).sum() / counted_B.sum().clamp_min(1)


def _decorrelation(e_BN: Tensor, a_BN: Tensor) -> Tensor:
    e_BN, a_BN = (F.normalize(x_BN - x_BN.mean(dim=1, keepdim=True), dim=1, eps=0.0) for x_BN in (e_BN, a_BN))
    return 1 - (e_BN * a_BN).sum(dim=1)


def _divergence(e_BN: Tensor, a_BN: Tensor) -> Tensor:
    e_BN = e_BN + FLOOR * e_BN.mean(dim=1, keepdim=True)
    p_BN, q_BN = (x_BN / x_BN.sum(dim=1, keepdim=True) for x_BN in (a_BN, e_BN))
    return F.kl_div(q_BN.log(), p_BN, reduction="none").sum(dim=1)


def _difference(e_BN: Tensor, a_BN: Tensor) -> Tensor:
    low, high = e_BN.amin(dim=1, keepdim=True), e_BN.amax(dim=1, keepdim=True)
    return ((e_BN - low) / (high - low) - a_BN).square().mean(dim=1)
