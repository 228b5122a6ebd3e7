"""The whole model: from a video and an attention map to class logits and embeddings in one space.

Legend: B clips, C channels of a map, T frames, H and W pixels, F clip_feature_dim, D clip_embed_dim, K classes; tokens
are (B, 64, T, H, W) of a coarser grid.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_common.losses import LogitScale
from videoclip.config import ModelConfig
from videoclip.models.encoders import Simple3DEncoder, build_video_encoder
from videoclip.models.pooling import MapGuidedVideoEncoder, build_gate, gate_by_summary, varies
from videoclip.models.stem import upcast

MEAN = (0.43216, 0.394666, 0.37645)
STD = (0.22803, 0.22145, 0.216989)
"""Mean and standard deviation of the pixels of Kinetics-400, scaled to 0 to 1, as torchvision's video models expect."""


def normalise(video_B3THW: Tensor) -> Tensor:
    """Return pixels (…, 3, T, H, W) of 0 to 255 as float32, of mean 0 and standard deviation 1 over Kinetics."""
    mean, std = (torch.tensor(values, device=video_B3THW.device)[:, None, None, None] for values in (MEAN, STD))
    return torch.addcmul(-mean / std, video_B3THW, 1 / (255 * std))


@dataclass(frozen=True)
class Output:
    """Output of the model for a batch.

    Attributes:
        logits: (B, K).
        video_embed, attn_embed: (B, D) unit vectors, float32; None if `align` is false.
        video_feat, attn_feat: (B, F), before projection; `attn_feat` is None if nothing reads it.
        video_tokens: (B, 64, T, H, W), before any gate; None unless the backbone is 3dcnn.
        video_gate: Gate from the map: (B, C or 1, T, H, W) over tokens, (B, 64) over their channels, or (B, F) over the
            feature of another backbone; None without `map_guided`.
        map_valid: (B,) bool: whether the clip has a map that is not constant.
        token_gain: Factor of the gate on the tokens; None without one.
    """

    logits: Tensor
    video_embed: Tensor | None
    attn_embed: Tensor | None
    video_feat: Tensor
    attn_feat: Tensor | None
    video_tokens: Tensor | None
    video_gate: Tensor | None
    map_valid: Tensor
    token_gain: Tensor | None

    @property
    def gated_tokens(self) -> Tensor | None:
        """x̃ (B, 64, T, H, W): x·(1 + α·g) or x·gate; the tokens themselves if no gate acts on them."""
        if self.video_tokens is None or self.token_gain is None:
            return self.video_tokens
        return self.video_tokens * self.token_gain


class VideoAttentionCLIP(nn.Module):
    """Video encoder, map encoder, a projection for each, and a classifier.

    Args:
        config: The section `model`: which encoders, whether maps guide, and which feature is classified. Its `weights`
            are not read here: training loads them (`videoclip.training.weights`).
        temperature: A fixed softmax temperature; None learns it, starting at 0.07.
    """

    def __init__(self, config: ModelConfig, *, temperature: float | None = None) -> None:
        super().__init__()
        self.config = config
        self.temperature = temperature
        width = config.clip_feature_dim
        self.map_gate = None
        if config.map_guided and config.clip_backbone == "3dcnn":
            self.video_encoder: nn.Module = MapGuidedVideoEncoder(config)
        else:
            self.video_encoder = build_video_encoder(config.clip_backbone, feature_dim=width)
            if config.map_guided:
                self.map_gate = build_gate(config.attn_in_channels, config.map_guided_hidden_dim, width)
        self.attn_encoder = Simple3DEncoder(config.attn_in_channels, width)
        self.video_projection = _build_projection(width, config.clip_embed_dim)
        self.attn_projection = _build_projection(width, config.clip_embed_dim)
        self.classifier = nn.Linear(width, config.model_class_num)
        start = {} if temperature is None else {"init": -math.log(temperature)}
        self.logit_scale = LogitScale(learned=temperature is None, **start)

    def forward(
        self, video_B3THW: Tensor, map_BCTHW: Tensor, *, valid_B: Tensor | None = None, align: bool = True
    ) -> Output:
        """Encode, align and classify.

        In training, a share `map_dropout` of the clips, drawn by torch's generator, is not guided; the map encoder
        sees every map.

        Args:
            video_B3THW: From `normalise`.
            map_BCTHW: Not negative.
            valid_B: False for a clip without a map, which is not guided; None if all have one. A constant map is never
                valid.
            align: Whether to compute the embeddings; the map encoder runs only for them and for a classifier that
                reads it.
        """
        map_valid_B = varies(map_BCTHW) if valid_B is None else varies(map_BCTHW) & valid_B
        guides_B = map_valid_B
        if self.training and self.config.map_dropout:
            guides_B = guides_B & (torch.rand(len(guides_B), device=guides_B.device) >= self.config.map_dropout)

        tokens = gate = gain = None
        encoder = self.video_encoder
        if isinstance(encoder, MapGuidedVideoEncoder):
            guided = encoder(video_B3THW, map_BCTHW, valid_B=guides_B)
            video_BF, tokens, gate, gain = guided.feature, guided.tokens, guided.gate, guided.gain
        elif type(encoder) is Simple3DEncoder:  # no other encoder's tokens are used
            tokens = encoder.tokens(video_B3THW)
            video_BF = encoder.pooled(tokens)
        else:
            video_BF = encoder(video_B3THW)
        if self.map_gate is not None:
            gate = gate_by_summary(self.map_gate, map_BCTHW, guides_B)
            video_BF = video_BF * gate

        attn_BF = video_embed = attn_embed = None
        classified_BF, source = video_BF, self.config.clip_classifier_source
        if align or source != "video":
            attn_BF = self.attn_encoder(map_BCTHW)
            classified_BF = {"video": video_BF, "attn": attn_BF, "fusion": (video_BF + attn_BF) / 2}[source]
        if align:
            video_embed = F.normalize(upcast(self.video_projection(video_BF)), dim=1)
            attn_embed = F.normalize(upcast(self.attn_projection(attn_BF)), dim=1)
        return Output(
            logits=self.classifier(classified_BF),
            video_embed=video_embed,
            attn_embed=attn_embed,
            video_feat=video_BF,
            attn_feat=attn_BF,
            video_tokens=tokens,
            video_gate=gate,
            map_valid=map_valid_B,
            token_gain=gain,
        )


def _build_projection(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.Dropout(0.1), nn.Linear(out, out), nn.LayerNorm(out))
