"""Contrastive losses other than InfoNCE; each is a few lines on vectors of length B.

In all of them z_ij = scale · cos(x_i, y_j), z⁺ is the mean logit of the positives, Σ_p runs over a row's positives and
Σ_j over its negatives, and w̃ are their normalised weights (1 without a weighting). The loss is the mean over rows and
columns alike (`contrastive_loss`).

Legend: B rows, D width, I rows and J columns of one tile, F width of the references.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clip_common.losses.infonce import Form, InfoNCE
from clip_common.losses.logits import Head
from clip_common.losses.reductions import Sides, log_sum_exp
from clip_common.losses.statistics import Direction


@dataclass(frozen=True)
class SigLIP(Form):
    """Sigmoid loss: every pair is a binary question of its own.

    L_i = Σ_p log(1 + e^{−z_ip − b}) + Σ_j w̃_ij log(1 + e^{z_ij + b}), b the `bias` given to the call.

    Equals:
        `open_clip.loss.SigLipLoss` without weights and with one positive each.
    Reference:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023, equation 1; scale starts at 10, bias at −10.

    Example:
        >>> loss = SigLIP()(image_BD, text_BD, scale=10.0, bias=-10.0)
    """

    @property
    def sigmoid(self) -> bool:
        return True

    def row_losses(self, side: Direction) -> Tensor:
        return side.positive_lse[0] + side.negative_lse[0]


@dataclass(frozen=True)
class Decoupled(Form):
    """InfoNCE with the positive left out of the denominator: easy positives still get gradient.

    L_i = −z⁺ + log Σ_j w̃_ij e^{z_ij}. Unbounded below: it keeps falling as positives and negatives separate and as the
    scale grows, so its value says little. A row without negatives has loss 0.

    Reference:
        Yeh et al., Decoupled Contrastive Learning, 2022 (L_DC).

    Example:
        >>> loss = Decoupled()(image_BD, text_BD, scale=1 / 0.07)
    """

    def row_losses(self, side: Direction) -> Tensor:
        return torch.where(side.negative_count > 0, side.negative_lse[0] - side.positive_mean[0], 0.0)


@dataclass(frozen=True)
class Boosted(Form):
    """InfoNCE in which weights only add: every negative counts 1 + β·w̃ times.

    L_i = −z⁺ + log(Σ_p e^{z_ip} + Σ_j (1 + β·w̃_ij) e^{z_ij}). β = 0 is InfoNCE.

    Args:
        beta: Strength of the weighted part, ≥ 0.

    Cost:
        Two heads: twice the elementwise work of InfoNCE, the same products.

    Example:
        >>> loss = Boosted(beta=0.5)(image_BD, text_BD, scale=1 / 0.07, weighting=weighting)
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"beta must be at least 0, got {self.beta}: 0 is InfoNCE")

    @property
    def heads(self) -> tuple[Head, ...]:
        return Head(weighted=False), Head()

    def row_losses(self, side: Direction) -> Tensor:
        log_beta = math.log(self.beta) if self.beta > 0 else float("-inf")
        negatives = log_sum_exp(torch.stack([side.negative_lse[0], side.negative_lse[1] + log_beta]), dim=0)
        return (
            F.softplus(negatives - side.positive_lse[0], threshold=30.0) + side.positive_lse[0] - side.positive_mean[0]
        )


@dataclass(frozen=True)
class Debiased(Form):
    """InfoNCE corrected for false negatives, assumed to be a share τ⁺ of all.

    L_i = −z⁺ + log(S_i + G_i),   S_i = Σ_p e^{z_ip},   G_i = max( (Σ_j w̃_ij e^{z_ij} − τ⁺ S_i N/P) / (1 − τ⁺),
    N e^{−scale} ), N negatives and P positives. τ⁺ = 0 is InfoNCE.

    Args:
        tau_plus: Prior probability that a negative is of the same class, in [0, 1).

    Reference:
        Chuang et al., Debiased Contrastive Learning, 2020, section 4, with M = P.

    Example:
        >>> loss = Debiased(tau_plus=0.05)(image_BD, text_BD, scale=1 / 0.07)
    """

    tau_plus: float = 0.1

    def __post_init__(self) -> None:
        _check_prior(self.tau_plus)

    def row_losses(self, side: Direction) -> Tensor:
        return _debiased(
            side.negative_lse[0], side.positive_lse[0], side, tau_plus=self.tau_plus, positive=side.positive_mean[0]
        )


@dataclass(frozen=True)
class HardNegative(Form):
    """`Debiased` with each negative weighted by its own e^{β z}: harder negatives count more.

    Σ_j w̃_ij e^{z_ij} is replaced by N Σ_j w_ij e^{(1+β) z_ij} / Σ_j w_ij e^{β z_ij}; gradients flow through both sums.
    Several positives are weighted the same way, S_i = P Σ_p e^{(1+β) z_ip} / Σ_p e^{β z_ip}; one positive gives e^{z⁺}.
    β = 0 is Debiased, β = 0 and τ⁺ = 0 is InfoNCE.

    Args:
        beta: Concentration on hard negatives, ≥ 0.
        tau_plus: As in `Debiased`.

    Cost:
        Two heads: twice the elementwise work of InfoNCE, the same products.
    Reference:
        Robinson et al., Contrastive Learning with Hard Negative Samples, 2021, section 3 and the code in its
        appendix.

    Example:
        >>> loss = HardNegative(beta=0.5, tau_plus=0.05)(image_BD, text_BD, scale=1 / 0.07)
    """

    beta: float = 1.0
    tau_plus: float = 0.1

    def __post_init__(self) -> None:
        _check_prior(self.tau_plus)
        if self.beta < 0:
            raise ValueError(f"beta must be at least 0, got {self.beta}: 0 is Debiased")

    @property
    def heads(self) -> tuple[Head, ...]:
        return Head(times=1 + self.beta), Head(times=self.beta)

    def row_losses(self, side: Direction) -> Tensor:
        tilted, weights = side.negative_lse
        negatives = torch.where(side.negative_count > 0, tilted - weights, 0.0) + side.negative_count.log()
        positives = side.positive_lse[0] - side.positive_lse[1] + side.positive_count.clamp_min(1.0).log()
        positive = side.positive_mean[0] - side.positive_mean[1]
        return _debiased(negatives, positives, side, tau_plus=self.tau_plus, positive=positive)


@dataclass(frozen=True)
class Guided(Form):
    """Any form, without negatives that a guide model rates closer than the positive: they are likely false negatives.

    With g_ij = cos(reference x_i, reference y_j), pair (i, j) is dropped from row i's negatives if g_ij ≥ g_ii − margin
    and from column j's if g_ij ≥ g_jj − margin. The references are the guide's embeddings of both sides, in one space.
    A tolerance of 1e-6 makes an exact copy of a positive count as closer despite rounding.

    Args:
        form: Loss of the remaining pairs.
        margin: How far below the positive a negative must be to stay, in cosine.

    Cost:
        One product of the references in each pass, and masks of a tile's size.
    Reference:
        Solatorio, GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning, 2024;
        here in both directions, without negatives from within one side.

    Example:
        >>> loss = Guided()(image_BD, text_BD, scale=1 / 0.07, references=(guide_image_BF, guide_text_BF))
    """

    form: Form = InfoNCE()  # noqa: RUF009 (it is frozen)
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.form.base is not self.form:
            raise ValueError(
                f"Guided takes a form of one width, got {self.form}: nest it the other way, Matryoshka(Guided(…))"
            )

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.form.heads

    @property
    def sigmoid(self) -> bool:
        return self.form.sigmoid

    @property
    def guided(self) -> bool:
        return True

    def row_losses(self, side: Direction) -> Tensor:
        return self.form.row_losses(side)

    def hide(
        self, reference_x_IF: Tensor, reference_y_IF: Tensor, reference_x_JF: Tensor, reference_y_JF: Tensor
    ) -> Sides:
        rounding = 1e-6
        guide_IJ = reference_x_IF @ reference_y_JF.T
        row_I = (reference_x_IF * reference_y_IF).sum(1) - self.margin - rounding
        column_J = (reference_x_JF * reference_y_JF).sum(1) - self.margin - rounding
        return guide_IJ >= row_I[:, None], guide_IJ >= column_J


def _debiased(negatives: Tensor, positives: Tensor, side: Direction, *, tau_plus: float, positive: Tensor) -> Tensor:
    # Divided by e^top, so that nothing overflows; without negatives and with one positive it is log(e⁰ + 0) = 0.
    top = torch.maximum(negatives, positives).detach()
    each = (positives - top).exp() / side.positive_count.clamp_min(1.0)
    rest = (negatives - top).exp() - side.negative_count * tau_plus * each
    least = side.negative_count * (-side.scale - top).exp()
    return ((positives - top).exp() + torch.maximum(rest / (1 - tau_plus), least)).log() + top - positive


def _check_prior(tau_plus: float) -> None:
    if not 0 <= tau_plus < 1:
        raise ValueError(f"tau_plus must be a probability in [0, 1), got {tau_plus}")
