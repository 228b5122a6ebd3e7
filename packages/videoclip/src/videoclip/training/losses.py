"""The training loss: cross-entropy, the contrastive loss of videos and maps, the token and the guide loss.

Legend: B clips, K classes, D width of the embeddings, C channels of a map; T, H, W frames and pixels of a map, or the
grid of the tokens; N = T·H·W tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_common.losses import contrastive_loss
from videoclip.config import LossConfig, ModelConfig
from videoclip.models import Output
from videoclip.models.pooling import correlate, resize_to_grid, token_energy, varies
from videoclip.models.stem import upcast

MapLoss = Literal["corr", "kl", "mse"]

FLOOR = 1e-6
"""Share of the mean energy that is added to each token's before the logarithm, because ReLU leaves zeros."""


PARTS = ("classification", "contrastive", "token", "guide", "distillation")
SOFTNESS = 2.0
"""Temperature of the distillation, at which the less likely classes still count."""


@dataclass(frozen=True)
class LossOutput:
    """The weighted sum `total`, and its parts, unweighted; all are scalars.

    total = classification + clip_weight·contrastive + lambda_token·token + lambda_guide·guide
    + distill_weight·distillation. A part with weight 0 is not computed and is 0. `contrastive_chance` is the
    contrastive loss if all maps were alike to every video.
    """

    total: Tensor
    classification: Tensor
    contrastive: Tensor
    token: Tensor
    guide: Tensor
    distillation: Tensor
    contrastive_chance: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts by name, for a log."""
        return {name: getattr(self, name) for name in PARTS}


class VideoClipLoss(nn.Module):
    """The loss of a batch.

    Args:
        config: The section `loss`: `clip_weight`, and which clips are excluded as negatives or count as positives.
        token_config: The section `model`, whose `lambda_token`, `token_loss` and `token_source` set the token loss.
    """

    def __init__(self, config: LossConfig, *, token_config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_config = token_config

    def forward(
        self,
        output: Output,
        *,
        map_BCTHW: Tensor,
        label_B: Tensor,
        subject_B: Tensor,
        regions_B: Tensor,
        scale: Tensor | float,
        taught_BK: Tensor | None = None,
    ) -> LossOutput:
        """Compute the loss of B clips; the contrastive part is over the clips of all processes.

        Clips without a valid map are left out of the contrastive and the token loss. A part without clips is 0.

        Args:
            output: The model's output, with embeddings unless `clip_weight` is 0.
            map_BCTHW: The model's input maps.
            label_B: Long; −1 is unknown and left out of the cross-entropy.
            subject_B: Equal ids are clips of one subject.
            regions_B: Equal ids are clips in which the same regions were attended.
            scale: One over the temperature.
            taught_BK: Logits of a teacher; None without one.
        """
        classification = cross_entropy(output.logits, label_B)
        contrastive = chance = token = guide = distillation = classification.new_zeros(())
        if self.config.clip_weight:
            assert output.video_embed is not None
            assert output.attn_embed is not None
            # all processes must make these calls, including one whose clips all lack maps
            with_map = output.map_valid.nonzero()[:, 0]
            compare = partial(
                contrastive_loss,
                output.video_embed[with_map],
                output.attn_embed[with_map],
                exclude=subject_B[with_map] if self.config.exclude == "subject" else None,
                positive=regions_B[with_map] if self.config.positive == "regions" else None,
            )
            contrastive = compare(scale=scale)
            with torch.no_grad():
                chance = compare(scale=0.0)
        settings = self.token_config
        if settings.lambda_token:
            tokens = output.gated_tokens if settings.token_source == "gated" else output.video_tokens
            token = token_loss(tokens, map_BCTHW, valid_B=output.map_valid, kind=settings.token_loss)
        if output.predicted_map is not None and settings.lambda_guide:
            guide = map_loss(output.predicted_map, map_BCTHW, valid_B=output.map_valid, kind=settings.guide_loss)
        if taught_BK is not None:
            distillation = distil(output.logits, taught_BK)
        total = classification + self.config.clip_weight * contrastive + self.config.distill_weight * distillation
        total = total + settings.lambda_token * token + settings.lambda_guide * guide
        return LossOutput(total, classification, contrastive, token, guide, distillation, chance)


def cross_entropy(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """Return the mean cross-entropy over labelled clips; 0 without any."""
    total = F.cross_entropy(upcast(logits_BK), label_B, ignore_index=-1, reduction="sum")
    return total / (label_B != -1).sum().clamp_min(1)


def distil(logits_BK: Tensor, taught_BK: Tensor) -> Tensor:
    """Return T²·KL(softmax(taught / T) ‖ softmax(logits / T)), the mean over clips, with T = `SOFTNESS`.

    Hinton et al., "Distilling the knowledge in a neural network" (2015).
    """
    own_BK, given_BK = ((upcast(x_BK) / SOFTNESS).log_softmax(dim=1) for x_BK in (logits_BK, taught_BK))
    return SOFTNESS**2 * F.kl_div(own_BK, given_BK, reduction="batchmean", log_target=True)


def token_loss(tokens_BCTHW: Tensor, map_BCTHW: Tensor, *, valid_B: Tensor, kind: MapLoss = "corr") -> Tensor:
    """Return how little the energy of the tokens, the mean over channels of their squares, follows the map.

    See `map_loss`.
    """
    return map_loss(token_energy(tokens_BCTHW), map_BCTHW, valid_B=valid_B, kind=kind)


def map_loss(e_B1THW: Tensor, map_BCTHW: Tensor, *, valid_B: Tensor, kind: MapLoss = "corr") -> Tensor:
    """Return how little values on a grid follow the map: the mean over clips, a scalar.

    e = the values; a = the mean over channels of the map, resized to their grid and scaled to 0 to 1.

        corr   1 − Pearson(e, a)
        kl     Σ p·ln(p/q), p = a / Σ a, q = e / Σ e
        mse    the mean of (ê − a)², ê = e scaled to 0 to 1

    Args:
        e_B1THW: The energy of tokens, or a predicted map; float32, not negative.
        map_BCTHW: Maps of any size.
        valid_B: Clips that count; a clip with constant values or a constant map never does.
        kind: Which of the three.
    """
    e_BN = e_B1THW.flatten(1)
    a_B1THW, varies_B1 = resize_to_grid(map_BCTHW.mean(dim=1, keepdim=True), e_B1THW.shape[2:])
    a_BN = a_B1THW.flatten(1)
    counted_B = valid_B & varies_B1[:, 0] & varies(e_BN.detach())
    # replace the values of clips that do not count, so that their gradient is 0 and not 0·∞
    e_BN = torch.where(counted_B[:, None], e_BN, torch.arange(e_BN.shape[1]).to(e_BN))
    a_BN = torch.where(counted_B[:, None], a_BN, torch.arange(a_BN.shape[1]).to(a_BN))
    each_B = {"corr": _decorrelation, "kl": _divergence, "mse": _difference}[kind](e_BN, a_BN)
    return torch.where(counted_B, each_B, 0.0).sum() / counted_B.sum().clamp_min(1)


def _decorrelation(e_BN: Tensor, a_BN: Tensor) -> Tensor:
    return 1 - correlate(e_BN, a_BN)


def _divergence(e_BN: Tensor, a_BN: Tensor) -> Tensor:
    e_BN = e_BN + FLOOR * e_BN.mean(dim=1, keepdim=True)
    p_BN, q_BN = (x_BN / x_BN.sum(dim=1, keepdim=True) for x_BN in (a_BN, e_BN))
    return F.kl_div(q_BN.log(), p_BN, reduction="none").sum(dim=1)


def _difference(e_BN: Tensor, a_BN: Tensor) -> Tensor:
    low, high = e_BN.amin(dim=1, keepdim=True), e_BN.amax(dim=1, keepdim=True)
    return ((e_BN - low) / (high - low) - a_BN).square().mean(dim=1)
