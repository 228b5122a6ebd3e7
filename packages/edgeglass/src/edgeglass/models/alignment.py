"""The model that alignment trains: an encoder for each modality, their fusion, and the loss over pairs.

Shapes: B samples, D shared width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from edgeglass.models.encoders import EncoderOutput, ModalityEncoder
from edgeglass.models.fusion import MultimodalFusion


@dataclass
class AlignmentModelOutput:
    """Embeddings of a batch, and their loss.

    Attributes:
        loss: Weighted sum over pairs, 0 if no sample has a pair; None without a loss, or if one modality alone was
            given.
        losses: Unweighted loss of each pair that took part, by its name, such as `image-text`.
        embeddings: (B, D) of each modality, and of the fusion under its name (`image+audio`); not normalised.
        encoded: Full output of each encoder.
        scales: Factor of the cosines of each pair, 1 / temperature.
    """

    loss: Tensor | None
    losses: dict[str, Tensor]
    embeddings: dict[str, Tensor]
    encoded: dict[str, EncoderOutput]
    scales: dict[str, Tensor]

    @cached_property
    def logits(self) -> dict[str, Tensor]:
        """Scaled cosines (B, B) of each pair at full width; rows and columns of absent samples mean nothing."""
        unit = {name: normalize(rows.float(), dim=-1) for name, rows in self.embeddings.items()}
        pairs = {name: name.split("-") for name in self.scales}
        return {
            name: self.scales[name] * unit[first] @ unit[second].T
            for name, (first, second) in pairs.items()
            if first in unit and second in unit
        }


class MultimodalAlignmentModel(nn.Module):
    """Encoders of several modalities into one nested space.

    Args:
        encoders: By modality, in the order of `edgeglass.config.MODALITIES`.
        loss: Called with `embeddings`, `present`, `captions` and `groups`; returns an object with `loss` and `losses`.
            None for a model that is only used.
        fusion: Fuses embeddings into one more.

    Attributes:
        means: Name → (D,) mean of the unit embeddings of a modality (or the fusion) over the training set: zeros
            until `set_means`. `embed(centre=True)` subtracts them.
    """

    def __init__(
        self,
        encoders: Mapping[str, ModalityEncoder],
        *,
        loss: nn.Module | None = None,
        fusion: MultimodalFusion | None = None,
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.loss = loss
        self.fusion = fusion
        self.width = next(iter(encoders.values())).widths[0]
        names = [*encoders, *([] if fusion is None else [fusion.name])]
        self.means = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(self.width), requires_grad=False) for name in names}
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities that have an encoder."""
        return tuple(self.encoders)

    @property
    def widths(self) -> tuple[int, ...]:
        """D and the narrower widths that are trained, decreasing."""
        widths: tuple[int, ...] = self.encoder_of(self.modalities[0]).widths
        return widths

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(iter(self.means.values())).device

    def encoder_of(self, modality: str) -> ModalityEncoder:
        """Return the encoder of a modality.

        Raises:
            ValueError: The model has none.
        """
        if modality not in self.encoders:
            raise ValueError(f"this model has no encoder of {modality}: it was aligned for {', '.join(self.encoders)}")
        encoder = self.encoders[modality]
        assert isinstance(encoder, ModalityEncoder)
        return encoder

    def forward(
        self,
        images: Any = None,
        texts: Any = None,
        audio: Any = None,
        *,
        present: Mapping[str, Tensor] | None = None,
        captions: Tensor | None = None,
        groups: Tensor | None = None,
    ) -> AlignmentModelOutput:
        """Embed a batch and compute its loss, in training and in evaluation alike.

        Args:
            images, texts, audio: What the encoders' feeds made, or a `TokenSequence` of cached features, B rows each;
                None for a modality that the whole batch lacks. DDP needs all of them on every process, with rows of any
                content where `present` is false.
            present: (B,) bools of modalities that some samples lack, whose rows are then ignored.
            captions: (B,) ids of the captions: equal ones share their targets.
            groups: (B,) ids: samples with equal ones show the same image or sound, and are no negatives of each other.

        Raises:
            ValueError: A modality without an encoder, or nothing given.
        """
        given = {"image": images, "text": texts, "audio": audio}
        present = present or {}
        encoded = {
            name: self.encoder_of(name)(one, present.get(name)) for name, one in given.items() if one is not None
        }
        if not encoded:
            raise ValueError("nothing to embed: give images, texts or audio")
        embeddings = {name: output.pooled for name, output in encoded.items()}
        present = {name: mask for name, mask in present.items() if name in embeddings}
        return self.compare(embeddings, encoded=encoded, present=present, captions=captions, groups=groups)

    def compare(
        self,
        embeddings: dict[str, Tensor],
        *,
        encoded: dict[str, EncoderOutput],
        present: Mapping[str, Tensor],
        captions: Tensor | None,
        groups: Tensor | None,
    ) -> AlignmentModelOutput:
        """Fuse embeddings and compute their loss; arguments as for `forward`."""
        alone = len(embeddings) < 2
        embeddings, present = self.fuse(embeddings, present)
        if self.loss is None or alone:
            return AlignmentModelOutput(None, {}, embeddings, encoded, {})
        found = self.loss(embeddings, present=present, captions=captions, groups=groups)
        scales: Any = self.loss.scale_of_pairs  # of any module that compares pairs
        return AlignmentModelOutput(found.loss, found.losses, embeddings, encoded, scales())

    def fuse(
        self, embeddings: dict[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Add the fused embedding, if the model has a fusion; it is present where any of its inputs is."""
        if self.fusion is None or not any(name in embeddings for name in self.fusion.modalities):
            return embeddings, dict(present)
        fused_BD = self.fusion(embeddings, present)
        every_B = torch.ones(len(fused_BD), dtype=torch.bool, device=fused_BD.device)
        given = [present.get(name, every_B) for name in self.fusion.modalities if name in embeddings]
        return embeddings | {self.fusion.name: fused_BD}, dict(present) | {self.fusion.name: torch.stack(given).any(0)}

    def embed(self, name: str, pooled_BD: Tensor, *, centre: bool) -> Tensor:
        """Return unit embeddings (B, D) in float32.

        Args:
            name: Modality, or name of the fusion.
            pooled_BD: Embeddings of it.
            centre: Subtract the modality's mean first.
        """
        unit_BD = normalize(pooled_BD.float(), dim=-1)
        return normalize(unit_BD - self.means[name], dim=-1) if centre else unit_BD

    def set_means(self, means: Mapping[str, Tensor]) -> None:
        """Set the mean (D,) of the unit embeddings of each modality, and of the fusion."""
        for name, mean_D in means.items():
            self.means[name].data.copy_(mean_D)
