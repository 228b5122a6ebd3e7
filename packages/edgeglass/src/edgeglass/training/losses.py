"""The losses of alignment, by the names of the original project, over `clip_common.losses.PairwiseModalities`.

    L = Σ over pairs p of w_p · (w_clip · L_p,D + w_mrl · Σ_d L_p,d)

with L_p,d the symmetric InfoNCE of pair p on the first d numbers, and d the widths below D.

Legend: B samples on this process, N samples and C captions of the training set, D width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clip_common.losses import InfoNCE, LogitScale, Matryoshka, ModalitiesOutput, PairwiseModalities, corpus_loss
from edgeglass.config import Config

TEMPERATURE = 0.07
"""Start of a learned temperature."""


class AlignmentLoss(PairwiseModalities):
    """The loss of one or more pairs of modalities, at the full width and at the widths below it.

    Args:
        dims: Widths below D, decreasing.
        pairs: Weight of each pair; by default images with texts.
        clip, mrl: w_clip and w_mrl.
        dims_per_step: Widths below D that are drawn per call; None: all.
        temperature: A fixed temperature; None learns one for each pair.

    Example:
        >>> loss = AlignmentLoss(dims=(256, 128))
        >>> loss({"image": image_BD, "text": text_BD}, captions=caption_ids_B).loss.backward()
    """

    def __init__(
        self,
        *,
        dims: Sequence[int] = (512, 256, 128),
        pairs: Mapping[tuple[str, str], float] | None = None,
        clip: float = 1.0,
        mrl: float = 1.0,
        dims_per_step: int | None = None,
        temperature: float | None = None,
    ) -> None:
        form = Matryoshka(InfoNCE(), dims=tuple(dims), full=clip, nested=mrl, dims_per_step=dims_per_step)
        super().__init__(
            {("image", "text"): 1.0} if pairs is None else pairs,
            form=form,
            init=-math.log(temperature or TEMPERATURE),
            learned=temperature is None,
        )

    def forward(  # type: ignore[override]
        self,
        embeddings: Mapping[str, Tensor],
        *,
        present: Mapping[str, Tensor] | None = None,
        captions: Tensor | None = None,
        groups: Tensor | None = None,
        form: Matryoshka | None = None,
    ) -> ModalitiesOutput:
        """Compute the loss of a batch.

        Args:
            embeddings: (B, D) by modality; one that the whole batch lacks may be left out.
            present: (B,) bools of modalities that some samples lack.
            captions: (B,) ids: equal captions share their targets, in the pairs with texts.
            groups: (B,) ids: samples with equal ones are no negatives of each other.
            form: In place of the one that the arguments of the class describe.
        """
        embeddings, present = self.add_absent(embeddings, present or {})
        positive = {} if captions is None else {pair: captions for pair in self.pairs if "text" in pair}
        return super().forward(embeddings, present=present, exclude=groups, positive=positive, form=form)

    def add_absent(
        self, embeddings: Mapping[str, Tensor], present: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return embeddings and presence of all modalities of the pairs; rows of one that is not given are absent."""
        like_BD = next(iter(embeddings.values()))
        absent = {name for pair in self.pairs for name in pair} - set(embeddings)
        nowhere_B = torch.zeros(len(like_BD), dtype=torch.bool, device=like_BD.device)
        return (
            dict(embeddings) | {name: torch.zeros_like(like_BD) for name in absent},
            dict(present) | dict.fromkeys(absent, nowhere_B),
        )

    def scale_of_pairs(self) -> dict[str, Tensor]:
        """Return the factor of the cosines of each pair, 1 / temperature, by the pair's name."""
        return {name: scale() for name, scale in self.scales.items()}

    def clamp_temperatures(self) -> None:
        """Keep every learned scale within 1 to 100; call after each optimizer step."""
        for scale in self.scales.values():
            assert isinstance(scale, LogitScale)
            scale.clamp_()


class TriModalAlignmentLoss(AlignmentLoss):
    """The loss of images, texts and sounds: image-text 1, audio-text 1, image-audio 0.5.

    Args:
        dims, clip, mrl, dims_per_step, temperature: As for `AlignmentLoss`.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int] = (512, 256, 128),
        clip: float = 1.0,
        mrl: float = 1.0,
        dims_per_step: int | None = None,
        temperature: float | None = None,
    ) -> None:
        pairs = {("image", "text"): 1.0, ("audio", "text"): 1.0, ("image", "audio"): 0.5}
        super().__init__(
            dims=dims, pairs=pairs, clip=clip, mrl=mrl, dims_per_step=dims_per_step, temperature=temperature
        )


@dataclass(frozen=True)
class Columns:
    """Embeddings of one modality of the training set, against which the rows of a batch are compared.

    Attributes:
        embeddings_CD: One row for each sample that has the modality; for texts, for each caption of each sample.
        captions_C: Id of the caption; of other modalities, of the caption that the sample shows in this epoch.
        groups_C: As for `AlignmentLoss.forward`.
        samples_C: Row of the sample in the training set.
    """

    embeddings_CD: Tensor
    captions_C: Tensor
    groups_C: Tensor
    samples_C: Tensor


class CorpusAlignmentLoss(AlignmentLoss):
    """`AlignmentLoss` with negatives from the whole training set: rows of the batch against all columns, both ways.

    `against` computes it; called like `AlignmentLoss`, as for validation, it is that loss of the batch.

    Args:
        full_only: Take the corpus at D alone; the widths below it use the batch.
        dims, pairs, clip, mrl, dims_per_step, temperature: As for `AlignmentLoss`.

    Equals:
        `AlignmentLoss` of a batch that holds the training set, if each sample has every modality and one caption. The
        mean over batches of equal size, weights unchanged, is that loss too.
    """

    def __init__(
        self,
        *,
        full_only: bool = False,
        dims: Sequence[int] = (512, 256, 128),
        pairs: Mapping[tuple[str, str], float] | None = None,
        clip: float = 1.0,
        mrl: float = 1.0,
        dims_per_step: int | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__(
            dims=dims, pairs=pairs, clip=clip, mrl=mrl, dims_per_step=dims_per_step, temperature=temperature
        )
        self.corpus_form, self.batch_form = self.form, None
        if full_only:
            self.corpus_form = Matryoshka(InfoNCE(), dims=(), full=clip)
            self.batch_form = Matryoshka(InfoNCE(), dims=tuple(dims), full=0.0, nested=mrl, dims_per_step=dims_per_step)

    def against(
        self,
        embeddings: Mapping[str, Tensor],
        columns: Mapping[str, Columns],
        *,
        present: Mapping[str, Tensor],
        captions: Tensor,
        groups: Tensor,
        samples: Tensor,
    ) -> ModalitiesOutput:
        """Compute the loss of a batch against the columns of the training set.

        Args:
            embeddings, present, captions, groups: As for `forward`.
            columns: By modality, and by the name of the fusion.
            samples: (B,) rows of the samples in the training set.
        """
        embeddings, present = self.add_absent(embeddings, present)
        losses: dict[str, Tensor] = {}
        # zero, but keeps every embedding in the graph, as DDP requires
        total = torch.stack([rows[:0].sum() for rows in embeddings.values()]).sum()
        within: dict[str, Tensor] = {}
        if self.batch_form is not None:
            within = self(embeddings, present=present, captions=captions, groups=groups, form=self.batch_form).losses
        every_B = torch.ones(len(samples), dtype=torch.bool, device=samples.device)
        for (first, second), weight in self.pairs.items():
            name = f"{first}-{second}"
            both_B = present.get(first, every_B) & present.get(second, every_B)
            by_caption = "text" in (first, second)
            ways = [
                corpus_loss(
                    embeddings[one][both_B],
                    columns[other].embeddings_CD,
                    scale=self.scales[name](),
                    form=self.corpus_form,
                    positive=(
                        (captions if by_caption else samples)[both_B],
                        columns[other].captions_C if by_caption else columns[other].samples_C,
                    ),
                    exclude=(groups[both_B], columns[other].groups_C),
                )
                for one, other in ((first, second), (second, first))
            ]
            losses[name] = (ways[0] + ways[1]) / 2 + within.get(name, 0.0)
            total = total + weight * losses[name]
        return ModalitiesOutput(total, losses)


def build_loss(config: Config) -> AlignmentLoss:
    """Return the loss that a configuration describes.

    Raises:
        ValueError: No pair of its modalities has a weight.
    """
    pairs = dict(config.pairs)
    if config.fusion.kind != "none":
        pairs["+".join(config.fusion.inputs), config.fusion.target] = config.fusion.weight
    if not pairs:
        raise ValueError(
            f"loss: no pair of {', '.join(config.encoders.modalities)} has a weight: "
            "set one of loss.image_text, loss.audio_text, loss.image_audio above 0"
        )
    loss = config.loss
    settings: dict[str, Any] = {
        "dims": config.mrl.widths[1:],
        "pairs": pairs,
        "clip": loss.clip,
        "mrl": loss.mrl,
        "dims_per_step": loss.dims_per_step,
        "temperature": loss.temperature,
    }
    if loss.negatives == "corpus":
        return CorpusAlignmentLoss(full_only=loss.corpus_widths == "full", **settings)
    return AlignmentLoss(**settings)
