"""VisionEncoder, TextEncoder, AudioEncoder: a frozen or trained encoder, a projector, a pooling, and nested widths.

    features (B, L, F), mask (B, L)  →  projector  →  pooling  →  pooled (B, D), sequence (B, K, D)

An encoder whose pooling has no parameters (`own`, `mean`) pools before it projects: its features are one vector a
sample, which a cache keeps. `attention` and `perceiver` project every token and pool then.

Shapes: B batch, L tokens, K tokens after the pooling, F width of the features, D shared width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clip_common.backbones import Encoder
from clip_common.backbones.trunk import TokenSequence, Trunk
from edgeglass.config import AudioConfig, EncoderConfig, PerceiverConfig, TextConfig, VisionConfig
from edgeglass.models.perceiver import PerceiverResampler
from edgeglass.models.pooling import AttentionPooling, masked_mean, zero_masked
from edgeglass.models.projector import build_projector


@dataclass(frozen=True)
class EncoderOutput:
    """Embeddings of B samples.

    Attributes:
        pooled: (B, D), not normalised.
        sequence: (B, K, D): projected tokens, or the latents of a Perceiver; one token where the pooling came first.
        mask: (B, K) bool, true where a token counts.
        dims: Widths of `mrl_embeddings`, decreasing, D first.
    """

    pooled: Tensor
    sequence: Tensor
    mask: Tensor
    dims: tuple[int, ...]

    @property
    def mrl_embeddings(self) -> dict[int, Tensor]:
        """Prefixes of `pooled` by width, each (B, d) of unit length in float32."""
        return {dim: normalize(self.pooled[:, :dim].float(), dim=-1) for dim in self.dims}


class VisionEncoderOutput(EncoderOutput):
    """Embeddings of images."""


class TextEncoderOutput(EncoderOutput):
    """Embeddings of texts."""


class AudioEncoderOutput(EncoderOutput):
    """Embeddings of sounds."""


class ProjectionHead(nn.Module):
    """Features to embeddings: all of an encoder that alignment trains.

    Args:
        width: F.
        embed_dim: D.
        config: Projector.
        pooling: `own` and `mean` average the features and project the mean; `attention` pools the projected tokens;
            `perceiver` averages its latents.
        perceiver: Sizes of the resampler, for `pooling="perceiver"`.

    Attributes:
        width: D.
    """

    def __init__(
        self, *, width: int, embed_dim: int, config: EncoderConfig, pooling: str, perceiver: PerceiverConfig | None
    ) -> None:
        super().__init__()
        self.width = embed_dim
        self.projector = build_projector(
            config.projector, width=width, embed_dim=embed_dim, hidden=config.hidden, dropout=config.dropout
        )
        self.attention = AttentionPooling(embed_dim) if pooling == "attention" else None
        self.perceiver = None
        if pooling == "perceiver":
            assert perceiver is not None
            self.perceiver = PerceiverResampler(
                embed_dim,
                latents=perceiver.latents,
                layers=perceiver.layers,
                heads=perceiver.heads,
                ff_mult=perceiver.ff_mult,
            )

    def forward(self, tokens_BLF: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pooled (B, D), sequence (B, K, D) and its mask (B, K)."""
        # before the projector: a NaN in a masked token would reach the gradient of its matrices as 0 · NaN
        tokens_BLF = zero_masked(tokens_BLF, mask_BL)
        sequence_BLD = self.projector(tokens_BLF)
        if self.attention is not None:
            return self.attention(sequence_BLD, mask_BL), sequence_BLD, mask_BL
        if self.perceiver is not None:
            latents_BKD = self.perceiver(sequence_BLD, mask_BL)
            return latents_BKD.mean(dim=1), latents_BKD, mask_BL.new_ones(latents_BKD.shape[:2])
        if tokens_BLF.shape[1] == 1:
            return sequence_BLD[:, 0], sequence_BLD, mask_BL
        return self.projector(masked_mean(tokens_BLF, mask_BL)), sequence_BLD, mask_BL


class ModalityEncoder(nn.Module):
    """An encoder of one modality under a projection head.

    Args:
        encoder: Trunk, feed and spec.
        config: The modality's section of the configuration.
        widths: D, then the narrower widths, decreasing.
        pooling: See `ProjectionHead`.
        perceiver: Sizes of the resampler.

    Attributes:
        encoder: As given; `encoder.feed` makes the input of `features`.
        head: Projector and pooling.
        pools_first: Whether features are one vector a sample.
    """

    output = EncoderOutput

    def __init__(
        self,
        encoder: Encoder,
        config: EncoderConfig,
        *,
        widths: tuple[int, ...],
        pooling: str,
        perceiver: PerceiverConfig | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.trunk: Trunk = encoder.tower.trunk
        self.widths = widths
        self.pools_first = pooling in ("own", "mean")
        self.head = ProjectionHead(
            width=self.trunk.width, embed_dim=widths[0], config=config, pooling=pooling, perceiver=perceiver
        )

    def features(self, inputs: Any) -> TokenSequence:
        """Return the features that the head takes, (B, 1, F) or (B, L, F), of what the encoder's feed made."""
        return self.wrap(self.trunk.features(inputs)) if self.pools_first else self.trunk.sequence(inputs)

    @staticmethod
    def wrap(features_BF: Tensor) -> TokenSequence:
        """Return vectors (B, F) as sequences of one token."""
        return TokenSequence(
            features_BF[:, None], torch.ones(len(features_BF), 1, dtype=torch.bool, device=features_BF.device)
        )

    def forward(self, inputs: Any, present_B: Tensor | None = None) -> Any:
        """Return the embeddings of B samples.

        Args:
            inputs: What the encoder's feed made, or a `TokenSequence` of features that a cache kept.
            present_B: Samples whose features count, (B,) bools; None: all.
        """
        tokens_BLF, mask_BL = inputs if isinstance(inputs, TokenSequence) else self.features(inputs)
        if present_B is not None:
            mask_BL = mask_BL & present_B[:, None]
        pooled_BD, sequence_BKD, mask_BK = self.head(tokens_BLF, mask_BL)
        return self.output(pooled_BD, sequence_BKD, mask_BK, self.widths)


class VisionEncoder(ModalityEncoder):
    """Images (B, 3, H, W) to `VisionEncoderOutput`."""

    output = VisionEncoderOutput

    def __init__(self, encoder: Encoder, config: VisionConfig, *, widths: tuple[int, ...]) -> None:
        super().__init__(encoder, config, widths=widths, pooling=config.pooling, perceiver=config.perceiver)


class TextEncoder(ModalityEncoder):
    """Tokens of texts to `TextEncoderOutput`; features are sentence embeddings."""

    output = TextEncoderOutput

    def __init__(self, encoder: Encoder, config: TextConfig, *, widths: tuple[int, ...]) -> None:
        super().__init__(encoder, config, widths=widths, pooling="own")


class AudioEncoder(ModalityEncoder):
    """Segments of sounds to `AudioEncoderOutput`; frames without sound are masked."""

    output = AudioEncoderOutput

    def __init__(self, encoder: Encoder, config: AudioConfig, *, widths: tuple[int, ...]) -> None:
        super().__init__(encoder, config, widths=widths, pooling=config.pooling, perceiver=config.perceiver)
