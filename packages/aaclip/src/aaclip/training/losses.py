"""Losses of the two stages. B images, C classes, P prompts, H and W pixels, D shared width.

Two classes make one channel: p is the probability of abnormal, 1 − p that of normal, because softmax over two classes
is the sigmoid of their difference.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

GAMMA = 2.0
SMOOTH_FOCAL = 1e-5
SMOOTH_DICE = 1.0


def segmentation_loss(p_BHW: Tensor, masks_BHW: Tensor, *, focal_alpha: Literal["one", "dynamic"] = "one") -> Tensor:
    """Return Focal(p, mask) + Dice(1 − p, 1 − mask) + Dice(p, mask), a scalar.

    Args:
        p_BHW: Probability of abnormal.
        masks_BHW: 1 on the defect, 0 elsewhere, in the dtype of `p_BHW`.
        focal_alpha: Weight of a pixel: one, or the inverse frequency of its class in the batch.
    """
    return (
        focal_loss(p_BHW, masks_BHW, alpha=focal_alpha)
        + dice_loss(1 - p_BHW, 1 - masks_BHW)
        + dice_loss(p_BHW, masks_BHW)
    )


def focal_loss(p_BHW: Tensor, masks_BHW: Tensor, *, alpha: Literal["one", "dynamic"] = "one") -> Tensor:
    """Return −α·(1 − p_t)²·ln p_t, averaged over pixels; p_t is the probability of the true class.

    Labels are smoothed by 1e-5.

    Reference:
        Lin et al., Focal Loss for Dense Object Detection, 2017, on probabilities. As in AA-CLIP's released code,
        targets are clamped to [1e-5, 1 − 1e-5] and 1e-5 is added to p_t.
    """
    target_BHW = masks_BHW.clamp(SMOOTH_FOCAL, 1 - SMOOTH_FOCAL)
    true_BHW = target_BHW * p_BHW + (1 - target_BHW) * (1 - p_BHW) + SMOOTH_FOCAL
    loss_BHW = -((1 - true_BHW) ** GAMMA) * true_BHW.log()
    if alpha == "dynamic":
        share = masks_BHW.mean().clamp(SMOOTH_FOCAL, 1 - SMOOTH_FOCAL)
        # inverse frequencies with mean one over the pixels of the batch
        loss_BHW = loss_BHW * torch.where(masks_BHW > 0.5, 0.5 / share, 0.5 / (1 - share))
    return loss_BHW.mean()


def dice_loss(p_BHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """Return 1 − (2·Σ p·m + 1) / (Σ p + Σ m + 1), summed over pixels and averaged over images.

    Reference:
        Milletari et al., V-Net, 2016, with linear sums in the denominator.
    """
    p_BN, masks_BN = p_BHW.flatten(1), masks_BHW.flatten(1)
    shared_B = (p_BN * masks_BN).sum(dim=1)
    return (1 - (2 * shared_B + SMOOTH_DICE) / (p_BN.sum(dim=1) + masks_BN.sum(dim=1) + SMOOTH_DICE)).mean()


def orthogonal_loss(text_BD2: Tensor) -> Tensor:
    """Return (mean over images of t_normal·t_abnormal)², which is zero if the two are orthogonal."""
    return (text_BD2[..., 0] * text_BD2[..., 1]).sum(dim=1).mean() ** 2


def infonce_loss(sides: Sequence[Tensor], text_CD2: Tensor, *, temperature: float) -> Tensor:
    """Return the mean over prompts z of −ln(exp(z·t_own/τ) / (exp(z·t_normal/τ) + exp(z·t_abnormal/τ))).

    Every side of a class weighs the same, however many prompts it has.

    Args:
        sides: Unit embeddings (P, D) of the normal, then of the abnormal prompts of each class: 2 C tensors.
        text_CD2: t, the normal and abnormal embedding of each class.
        temperature: τ.

    Reference:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018, with the two embeddings
        of a class as the candidates.
    """
    losses = []
    for number, side_PD in enumerate(sides):
        logits_P2 = side_PD @ text_CD2[number // 2] / temperature
        own_P = torch.full((len(side_PD),), number % 2, device=side_PD.device)
        losses.append(cross_entropy(logits_P2, own_P))
    return torch.stack(losses).mean()
