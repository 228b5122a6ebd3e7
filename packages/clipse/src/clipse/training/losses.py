"""Contrastive losses whose negatives are weighted by how similar the pairs are (SANW).

    A_ij = mix·cos(t_i, t_j) + (1 − mix)·cos(v_i, v_j)        from detached references
    w   <- (1 − alpha) + alpha·w                              alpha = 0 is CLIP exactly

A weighting is a dataclass with a method `log_weight`, registered under the entry-point group `clipse.weightings`; its
fields are the parameters that `loss.NAME=…` sets. It may also have

    presets         class attribute: preset → values of parameters (`default` needs none: it is the fields' defaults)
    similarity and in_band                            methods of `BandedWeighting`, for one more statistic
    narrow_search(ranges, parameters) -> ranges       class method: search ranges beside parameters that are set

and a field may name a key (`metadata={"alias": "lambda"}`) and a range for `clipse tune`
(`metadata={"search": SearchRange(0.0, 1.0)}`). SANWDebias and SANWBandpass are registered the same way.

Shapes: B rows of this process, D shared width, I and J the rows and columns of one tile, F width of the references.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clip_common.losses import Boosted, Decoupled, Form, InfoNCE, SigLIP, Weighting, contrastive_loss
from clipse.config import LossConfig, SearchRange, list_parameter_keys, load_weighting
from clipse.training.statistics import BLOCK, compute_statistics


@dataclass(frozen=True, kw_only=True)
class SimilarityWeighting:
    """Base of both SANW weightings: the similarity of two pairs, and the strength of the weighting."""

    alpha: float = field(default=1.0, metadata={"search": SearchRange(0.0, 1.0)})
    mix: float = 0.5

    def __post_init__(self) -> None:
        for name in ("alpha", "mix"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"loss.{name}={getattr(self, name)}: expected a share between 0 and 1")

    def similarity(self, image_IF: Tensor, text_IF: Tensor, image_JF: Tensor, text_JF: Tensor) -> Tensor:
        """Return A (I, J) = mix·cos of texts + (1 − mix)·cos of images, from L2-normalised references."""
        return self.mix * (text_IF @ text_JF.T) + (1 - self.mix) * (image_IF @ image_JF.T)

    def log_full(self, similarity_IJ: Tensor) -> Tensor:
        """Return ln w (I, J) at full strength; finite for every similarity."""
        raise NotImplementedError

    def log_weight(self, image_IF: Tensor, text_IF: Tensor, image_JF: Tensor, text_JF: Tensor) -> Tensor:
        """Return ln((1 − alpha) + alpha·w) (I, J), from L2-normalised references."""
        # computed from ln w: float32 does not distinguish w = 1e-8 from 0, nor 1 − w from 1
        log_IJ = self.log_full(self.similarity(image_IF, text_IF, image_JF, text_JF))
        if self.alpha in (0, 1):
            return self.alpha * log_IJ
        return torch.logaddexp(log_IJ + math.log(self.alpha), log_IJ.new_full((), math.log1p(-self.alpha)))


@dataclass(frozen=True, kw_only=True)
class SANWDebias(SimilarityWeighting):
    """Counts negatives that are very similar to the positive less: they are likely false negatives.

    `sigmoid`: w = σ(λ(δ − A)); `hinge`: w = exp(−λ·max(0, A − δ)), which leaves similarities below δ unweighted.

    Args:
        alpha: Strength, 0 (CLIP exactly) to 1.
        delta: δ, the similarity above which a negative counts less.
        lam: λ, sharpness of that threshold.
        kernel: `sigmoid` or `hinge`.
        mix: Share of text similarity in A.
    """

    delta: float = field(default=0.6, metadata={"search": SearchRange(0.0, 1.0)})
    lam: float = field(default=4.0, metadata={"alias": "lambda", "search": SearchRange(0.5, 32.0, log=True)})
    kernel: Literal["sigmoid", "hinge"] = "sigmoid"

    presets: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "conservative": {"alpha": 0.1, "delta": 0.2, "lam": 0.5},
        "aggressive": {"alpha": 0.3, "delta": 0.5, "lam": 2.0},
    }
    """The source document's values; nearly CLIP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel not in ("sigmoid", "hinge"):
            raise ValueError(f"loss.kernel={self.kernel}: expected sigmoid or hinge")
        if self.lam <= 0:
            raise ValueError(f"loss.lambda={self.lam}: expected a sharpness above 0")

    def log_full(self, similarity_IJ: Tensor) -> Tensor:
        """Return ln w (I, J) at full strength."""
        if self.kernel == "hinge":
            return -self.lam * functional.relu(similarity_IJ - self.delta)
        return functional.logsigmoid(self.lam * (self.delta - similarity_IJ))

    def in_band(self, similarity_IJ: Tensor) -> Tensor:
        """Return (I, J) bool: similarities above the threshold."""
        return similarity_IJ > self.delta


@dataclass(frozen=True, kw_only=True)
class SANWBandpass(SimilarityWeighting):
    """Emphasises mid-hard negatives: w = σ((A − m1)/γ)·σ((m2 − A)/γ), at least 10⁻³.

    Args:
        alpha: Strength, 0 (CLIP exactly) to 1.
        m1, m2: Edges of the band of similarities.
        gamma: γ, width of the edges.
        mix: Share of text similarity in A.
    """

    m1: float = field(default=0.3, metadata={"search": SearchRange(-0.2, 0.49)})
    m2: float = field(default=0.8, metadata={"search": SearchRange(0.5, 1.0)})
    gamma: float = field(default=0.05, metadata={"search": SearchRange(0.01, 1.0, log=True)})

    floor: ClassVar[float] = 1e-3

    presets: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "conservative": {"alpha": 0.1, "m1": 0.1, "m2": 0.9, "gamma": 0.5},
        "aggressive": {"alpha": 0.2, "m1": 0.3, "m2": 0.8, "gamma": 1.0},
    }
    """The source document's values; nearly CLIP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.m1 >= self.m2:
            raise ValueError(f"loss.m1={self.m1}, loss.m2={self.m2}: expected a band, m1 below m2")
        if self.gamma <= 0:
            raise ValueError(f"loss.gamma={self.gamma}: expected a width above 0")

    def log_full(self, similarity_IJ: Tensor) -> Tensor:
        """Return ln w (I, J) at full strength."""
        low = functional.logsigmoid((similarity_IJ - self.m1) / self.gamma)
        high = functional.logsigmoid((self.m2 - similarity_IJ) / self.gamma)
        return (low + high).clamp_min(math.log(self.floor))

    def in_band(self, similarity_IJ: Tensor) -> Tensor:
        """Return (I, J) bool: similarities between the edges."""
        return (similarity_IJ > self.m1) & (similarity_IJ < self.m2)

    @classmethod
    def narrow_search(cls, ranges: Mapping[str, SearchRange], parameters: Mapping[str, Any]) -> dict[str, SearchRange]:
        """Keep m1 below m2 when one of them is set and the other is searched."""
        narrowed, m1, m2 = dict(ranges), parameters.get("m1"), parameters.get("m2")
        if m2 is not None and "m1" in narrowed:
            old = narrowed["m1"]
            narrowed["m1"] = replace(old, low=min(old.low, m2 - 0.5), high=min(old.high, m2 - 0.01))
        if m1 is not None and "m2" in narrowed:
            old = narrowed["m2"]
            narrowed["m2"] = replace(old, low=max(old.low, m1 + 0.01), high=max(old.high, m1 + 0.5))
        return narrowed


@dataclass(frozen=True)
class LossOutput:
    """The loss of a batch, and the statistics of its weights (empty for a loss without weights)."""

    loss: Tensor
    statistics: dict[str, Tensor]


class RetrievalLoss(nn.Module):
    """Contrastive loss of images and texts with weighted negatives.

    Args:
        weighting: Log-weights of negatives; None gives every negative weight 1, as CLIP does.
        form: How positives and weighted negatives are combined; default: InfoNCE.
        normalise: `mean1` scales the weights of each row, and of each column, to mean 1.
        positive: `caption` makes pairs with equal captions positives; `pair`: each pair is its own.
        exclude: `caption` leaves pairs with equal captions out of the negatives, like pairs of one image.
    """

    def __init__(
        self,
        weighting: Weighting | None = None,
        *,
        form: Form | None = None,
        normalise: Literal["none", "mean1"] = "mean1",
        positive: Literal["pair", "caption"] = "pair",
        exclude: Literal["image", "caption"] = "image",
    ) -> None:
        super().__init__()
        self.weighting = weighting
        self.form = form or InfoNCE()
        self.normalise = normalise
        self.positive = positive
        self.exclude = exclude

    def forward(
        self,
        image_BD: Tensor,
        text_BD: Tensor,
        *,
        scale: Tensor | float,
        references: tuple[Tensor, Tensor] | None = None,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> LossOutput:
        """Compute the loss of B pairs; across processes, of the pairs of all of them.

        Args:
            image_BD, text_BD: Embeddings; row i of both is a pair.
            scale: One over the temperature.
            references: Features of images and texts from which A is computed; None takes the embeddings.
            image_ids: (B,) long; pairs of one image are not negatives of each other.
            text_ids: (B,) long, equal for equal captions; for `positive` and `exclude`.
            bias: SigLIP's logit bias.
        """
        positive = text_ids if self.positive == "caption" else None
        alike = [image_ids, text_ids if "caption" in (self.positive, self.exclude) else None]
        sets = [ids for ids in alike if ids is not None]
        exclude = torch.stack(sets, dim=1) if len(sets) > 1 else sets[0] if sets else None
        loss = contrastive_loss(
            image_BD,
            text_BD,
            scale=scale,
            form=self.form,
            weighting=self.weighting,
            references=references,
            normalise=self.normalise,
            exclude=exclude,
            positive=positive,
            bias=bias,
        )
        if self.weighting is None:
            return LossOutput(loss, {})
        statistics = compute_statistics(
            self.weighting,
            image_BD[:BLOCK],
            text_BD[:BLOCK],
            references=tuple(side[:BLOCK] for side in references or (image_BD, text_BD)),
            exclude=None if exclude is None else exclude[:BLOCK],
            scale=scale,
            normalise=self.normalise,
        )
        return LossOutput(loss, statistics)

    def chance(self, same_T3: Tensor, *, processes: int = 1) -> float | None:
        """Return the loss of a batch in which all pairs have the same score; of SigLIP, at the best such score.

        Args:
            same_T3: (T, 3) texts of this process with the same image, the same caption, and either (`count_same`).
            processes: Number of processes; texts of the others are taken to be negatives.

        Returns:
            None for weights that are not normalised, whose sum is unknown.
        """
        if self.weighting is not None and self.normalise == "none":
            return None
        image_T, text_T, either_T = same_T3.double().unbind(1)
        p = text_T if self.positive == "caption" else torch.ones_like(text_T)
        n = processes * len(same_T3) - (either_T if "caption" in (self.positive, self.exclude) else image_T)
        if isinstance(self.form, SigLIP):  # sigmoid(score) = p / (p + n)
            losses_T = torch.xlogy(p, (p + n) / p) + torch.xlogy(n, (p + n) / n.clamp_min(1))
        elif isinstance(self.form, Decoupled):
            losses_T = n.clamp_min(1).log()
        else:
            losses_T = (p + n * (1 + (self.form.beta if isinstance(self.form, Boosted) else 0))).log()
        return float(losses_T.mean())


def build_loss(config: LossConfig) -> RetrievalLoss:
    """Build the loss that a configuration names.

    Raises:
        ValueError: An unknown name, a value out of range, or a parameter that has no meaning for this loss.
    """
    alike: dict[str, Any] = {"positive": config.positive, "exclude": config.exclude}
    if config.name in ("clip", "siglip"):
        if config.parameters:
            names = ", ".join(f"loss.{name}" for name in config.parameters)
            raise ValueError(f"{names} has no meaning for loss.name={config.name}, which weights all negatives alike")
        if config.name == "clip":
            return RetrievalLoss(form=_build_form(config), **alike)
        if config.form != "infonce":
            raise ValueError(f"loss.form={config.form} has no meaning for loss.name=siglip: leave it out")
        return RetrievalLoss(form=SigLIP(), **alike)
    weighting = build_weighting(config.name, preset=config.preset, parameters=config.parameters)
    return RetrievalLoss(weighting, form=_build_form(config), normalise=config.normalise, **alike)


def build_weighting(name: str, *, preset: str = "default", parameters: Mapping[str, Any] | None = None) -> Weighting:
    """Build a weighting from its registered name, a preset, and parameters that override the preset's.

    Raises:
        ValueError: An unknown name or preset, a parameter that the weighting does not have, or a value out of range.
    """
    weighting, parameters = load_weighting(name), parameters or {}
    keys = list_parameter_keys(weighting)
    if foreign := [parameter for parameter in parameters if parameter not in keys]:
        raise ValueError(
            f"loss.name={name} does not take {', '.join(f'loss.{parameter}' for parameter in foreign)}; "
            f"it takes {', '.join(f'loss.{key}' for key in keys.values()) or 'no parameters'}"
        )
    presets = list_presets(name)
    if preset not in presets:
        raise ValueError(f"loss.preset={preset}: loss.name={name} has the presets {', '.join(presets)}")
    given = {**presets[preset], **parameters}
    required = {field.name for field in fields(weighting) if field.default is MISSING} if keys else set()
    if absent := sorted(required - given.keys()):
        raise ValueError(f"loss.name={name} needs {', '.join(f'loss.{keys[parameter]}=…' for parameter in absent)}")
    return cast(Weighting, weighting(**given))


def list_presets(name: str) -> dict[str, Mapping[str, Any]]:
    """Return the presets of a registered weighting: preset → parameters that differ from the defaults."""
    own: Mapping[str, Mapping[str, Any]] = getattr(load_weighting(name), "presets", {})
    return {"default": {}, **own}


def _build_form(config: LossConfig) -> Form:
    if config.form == "boosted":
        return Boosted(beta=config.beta)
    return Decoupled() if config.form == "decoupled" else InfoNCE()
