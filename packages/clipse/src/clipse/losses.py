"""SANW: contrastive losses whose negatives weigh by how alike the pairs are, and the statistics that show what they do.

    A_ij = mix·cos(t_i, t_j) + (1 − mix)·cos(v_i, v_j)        from detached references
    w   <- (1 − alpha) + alpha·w                              alpha = 0 is CLIP exactly

Shapes: B rows of this process, D shared width, I and J the rows and columns of one tile, F width of the references.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from clip_common.losses import Boosted, Decoupled, Form, InfoNCE, SigLIP, Weighting, contrastive_loss
from clipse.config import LossConfig

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "sanw_debias": {
        "default": {"alpha": 1.0, "delta": 0.6, "lam": 4.0},
        "conservative": {"alpha": 0.1, "delta": 0.2, "lam": 0.5},
        "aggressive": {"alpha": 0.3, "delta": 0.5, "lam": 2.0},
    },
    "sanw_bandpass": {
        "default": {"alpha": 1.0, "m1": 0.3, "m2": 0.8, "gamma": 0.05},
        "conservative": {"alpha": 0.1, "m1": 0.1, "m2": 0.9, "gamma": 0.5},
        "aggressive": {"alpha": 0.2, "m1": 0.3, "m2": 0.8, "gamma": 1.0},
    },
}
"""Parameters by loss and preset. `conservative` and `aggressive` are the source document's, and nearly CLIP."""

PARAMETERS = ("alpha", "delta", "lam", "kernel", "m1", "m2", "gamma", "mix")
"""Fields of `LossConfig` that belong to a weighting."""

BLOCK = 256
"""Rows and columns of the batch that the statistics look at: they are a sample where the batch is larger."""


@runtime_checkable
class BandedWeighting(Weighting, Protocol):
    """A weighting that can also say which similarities it is about."""

    def similarity(self, image_IF: Tensor, text_IF: Tensor, image_JF: Tensor, text_JF: Tensor) -> Tensor:
        """A (I, J), from L2-normalised references."""

    def in_band(self, similarity_IJ: Tensor) -> Tensor:
        """(I, J) bool: the pairs that the weighting singles out."""


@dataclass(frozen=True, kw_only=True)
class _Similar:
    """What both weightings share: the similarity of pairs and the strength."""

    alpha: float = 1.0
    mix: float = 0.5

    def __post_init__(self) -> None:
        for name in ("alpha", "mix"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"loss.{name}={getattr(self, name)}: expected a share between 0 and 1")

    def similarity(self, image_IF: Tensor, text_IF: Tensor, image_JF: Tensor, text_JF: Tensor) -> Tensor:
        """A (I, J) = mix·cos of texts + (1 − mix)·cos of images."""
        return self.mix * (text_IF @ text_JF.T) + (1 - self.mix) * (image_IF @ image_JF.T)

    def log_full(self, similarity_IJ: Tensor) -> Tensor:
        """ln w (I, J) at full strength; finite for every similarity."""
        raise NotImplementedError

    def log_weight(self, image_IF: Tensor, text_IF: Tensor, image_JF: Tensor, text_JF: Tensor) -> Tensor:
        """ln((1 − alpha) + alpha·w) (I, J)."""
        # from ln w all the way: float32 does not tell w = 1e-8 from 0, nor 1 − w from 1
        log_IJ = self.log_full(self.similarity(image_IF, text_IF, image_JF, text_JF))
        if self.alpha in (0, 1):
            return self.alpha * log_IJ
        return torch.logaddexp(log_IJ + math.log(self.alpha), log_IJ.new_full((), math.log1p(-self.alpha)))


@dataclass(frozen=True, kw_only=True)
class SANWDebias(_Similar):
    """Counts negatives that are much like the positive less: they are likely false.

    `sigmoid`: w = σ(λ(δ − A)); `hinge`: w = exp(−λ·max(0, A − δ)), which leaves what is below δ alone.

    Args:
        alpha: Strength, 0 (CLIP exactly) to 1.
        delta: δ, the similarity above which a negative counts less.
        lam: λ, sharpness of that threshold.
        kernel: `sigmoid` or `hinge`.
        mix: Share of text similarity in A.
    """

    delta: float = 0.6
    lam: float = 4.0
    kernel: Literal["sigmoid", "hinge"] = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel not in ("sigmoid", "hinge"):
            raise ValueError(f"loss.kernel={self.kernel}: expected sigmoid or hinge")
        if self.lam <= 0:
            raise ValueError(f"loss.lambda={self.lam}: expected a sharpness above 0")

    def log_full(self, similarity_IJ: Tensor) -> Tensor:
        """ln w (I, J) at full strength."""
        if self.kernel == "hinge":
            return -self.lam * functional.relu(similarity_IJ - self.delta)
        return functional.logsigmoid(self.lam * (self.delta - similarity_IJ))

    def in_band(self, similarity_IJ: Tensor) -> Tensor:
        """Above the threshold."""
        return similarity_IJ > self.delta


@dataclass(frozen=True, kw_only=True)
class SANWBandpass(_Similar):
    """Stresses mid-hard negatives: w = σ((A − m1)/γ)·σ((m2 − A)/γ), at least 10⁻³.

    Args:
        alpha: Strength, 0 (CLIP exactly) to 1.
        m1, m2: Edges of the band of similarities.
        gamma: γ, width of the edges.
        mix: Share of text similarity in A.
    """

    m1: float = 0.3
    m2: float = 0.8
    gamma: float = 0.05

    floor = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m1 >= self.m2:
            raise ValueError(f"loss.m1={self.m1}, loss.m2={self.m2}: expected a band, m1 below m2")
        if self.gamma <= 0:
            raise ValueError(f"loss.gamma={self.gamma}: expected a width above 0")

    def log_full(self, similarity_IJ: Tensor) -> Tensor:
        """ln w (I, J) at full strength."""
        low = functional.logsigmoid((similarity_IJ - self.m1) / self.gamma)
        high = functional.logsigmoid((self.m2 - similarity_IJ) / self.gamma)
        return (low + high).clamp_min(math.log(self.floor))

    def in_band(self, similarity_IJ: Tensor) -> Tensor:
        """Between the edges."""
        return (similarity_IJ > self.m1) & (similarity_IJ < self.m2)


@dataclass(frozen=True)
class LossOutput:
    """The loss of a batch, and what its weights were like (empty for a loss without weights)."""

    loss: Tensor
    statistics: dict[str, Tensor]


class RetrievalLoss(nn.Module):
    """A contrastive loss of images and texts with weighted negatives.

    Args:
        weighting: Log-weights of negatives; None weighs all alike, which is CLIP.
        form: What is made of positives and negatives.
        normalise: `mean1` scales the weights of each row, and of each column, to mean 1.
    """

    def __init__(
        self,
        weighting: Weighting | None = None,
        *,
        form: Form | None = None,
        normalise: Literal["none", "mean1"] = "mean1",
    ) -> None:
        super().__init__()
        self.weighting = weighting
        self.form = form or InfoNCE()
        self.normalise = normalise

    def forward(
        self,
        image_BD: Tensor,
        text_BD: Tensor,
        *,
        scale: Tensor | float,
        references: tuple[Tensor, Tensor] | None = None,
        image_ids: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> LossOutput:
        """Loss of B pairs; across processes, of the pairs of all of them.

        Args:
            image_BD, text_BD: Embeddings; row i of both is a pair.
            scale: One over the temperature.
            references: Features of images and of texts that pairs are compared by; None takes the embeddings.
            image_ids: (B,) long; pairs of one image are not negatives of each other.
            bias: SigLIP's.
        """
        loss = contrastive_loss(
            image_BD,
            text_BD,
            scale=scale,
            form=self.form,
            weighting=self.weighting,
            references=references,
            normalise=self.normalise,
            exclude=image_ids,
            bias=bias,
        )
        if self.weighting is None:
            return LossOutput(loss, {})
        statistics = weight_statistics(
            self.weighting,
            image_BD[:BLOCK],
            text_BD[:BLOCK],
            references=tuple(side[:BLOCK] for side in references or (image_BD, text_BD)),
            image_ids=None if image_ids is None else image_ids[:BLOCK],
            scale=scale,
            normalise=self.normalise,
        )
        return LossOutput(loss, statistics)


@torch.no_grad()
def weight_statistics(
    weighting: Weighting,
    image_BD: Tensor,
    text_BD: Tensor,
    *,
    references: tuple[Tensor, ...],
    scale: Tensor | float,
    image_ids: Tensor | None = None,
    normalise: Literal["none", "mean1"] = "mean1",
) -> dict[str, Tensor]:
    """What the weights of the true negatives are like.

    Returns:
        w_mean, w_p05, w_p50, w_p95; low_pct and high_pct, percent of weights below 0.5 and above 1.5;
        band_coverage_pct, percent of the negatives that the weighting is about (0 where it does not say); ess, the
        effective sample size (Σw)²/Σw² as a share of the negatives; corr_wz, the correlation of weight and logit
        (0 where one of them is constant).
    """
    image_BF, text_BF = (functional.normalize(side.float(), dim=1) for side in references)
    log_weight_BB = weighting.log_weight(image_BF, text_BF, image_BF, text_BF)
    ids = torch.arange(len(image_BD), device=image_BD.device) if image_ids is None else image_ids
    negative_BB = ids[:, None] != ids[None]
    if not negative_BB.any():
        return {}
    if normalise == "mean1":
        total_B1 = log_weight_BB.masked_fill(~negative_BB, float("-inf")).logsumexp(dim=1, keepdim=True)
        log_mean_B1 = total_B1 - negative_BB.sum(dim=1, keepdim=True).log()
        log_weight_BB = log_weight_BB - torch.where(total_B1 > float("-inf"), log_mean_B1, 0.0)
    log_weight = log_weight_BB[negative_BB]
    weight = log_weight.exp()
    share = (log_weight - log_weight.amax()).exp()  # of the largest weight: without mean1 all of them may vanish
    low, middle, high = weight.quantile(weight.new_tensor([0.05, 0.5, 0.95]))
    unit_image, unit_text = (functional.normalize(side.float(), dim=1) for side in (image_BD, text_BD))
    logit = (scale * unit_image @ unit_text.T)[negative_BB]
    covered = weight.new_zeros(())
    if isinstance(weighting, BandedWeighting):
        similarity_BB = weighting.similarity(image_BF, text_BF, image_BF, text_BF)
        covered = weighting.in_band(similarity_BB)[negative_BB].float().mean()
    return {
        "w_mean": weight.mean(),
        "w_p05": low,
        "w_p50": middle,
        "w_p95": high,
        "low_pct": 100 * (weight < 0.5).float().mean(),
        "high_pct": 100 * (weight > 1.5).float().mean(),
        "band_coverage_pct": 100 * covered,
        "ess": share.sum() ** 2 / (share**2).sum() / len(share),
        "corr_wz": _correlation(share, logit),
    }


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    one, other = one - one.mean(), other - other.mean()
    spread = one.norm() * other.norm()
    return torch.where(spread > 1e-6, (one * other).sum() / spread.clamp_min(1e-6), 0.0)


def weighting(name: str, **parameters: Any) -> Weighting:
    """A weighting by its registered name (entry-point group `clipse.weightings`).

    Raises:
        ValueError: An unknown name, or a parameter that the weighting does not have.
    """
    registered = {entry.name: entry for entry in entry_points(group="clipse.weightings")}
    if name not in registered:
        known = ", ".join(["clip", "siglip", *sorted(registered)])
        raise ValueError(f"loss.name={name}: unknown loss; known: {known}")
    made = registered[name].load()
    try:
        return made(**parameters)
    except TypeError as error:
        raise ValueError(f"loss.name={name} does not take {', '.join(parameters)} ({error})") from error


def build_loss(config: LossConfig) -> RetrievalLoss:
    """The loss that a configuration names.

    Raises:
        ValueError: An unknown name, a value out of range, or a parameter that has no meaning for this loss.
    """
    given = {name: value for name in PARAMETERS if (value := getattr(config, name)) is not None}
    if config.name in ("clip", "siglip"):
        _refuse(config, given)
        if config.name == "clip":
            return RetrievalLoss(form=_form(config))
        if config.form != "infonce":
            raise ValueError(f"loss.form={config.form} has no meaning for loss.name=siglip: leave it out")
        return RetrievalLoss(form=SigLIP())
    preset: Mapping[str, Any] = PRESETS.get(config.name, {}).get(config.preset, {})
    return RetrievalLoss(
        weighting(config.name, **(dict(preset) | given)), form=_form(config), normalise=config.normalise
    )


def _refuse(config: LossConfig, given: Mapping[str, Any]) -> None:
    if given:
        names = ", ".join(f"loss.{name}" for name in given)
        raise ValueError(f"{names} has no meaning for loss.name={config.name}, which weighs all negatives alike")


def _form(config: LossConfig) -> Form:
    if config.form == "boosted":
        return Boosted(beta=config.beta)
    return Decoupled() if config.form == "decoupled" else InfoNCE()
