"""The whole model: from a video and an attention map to class logits and embeddings in one space.

Legend: B clips, C channels of a map, T frames, H and W pixels, F clip_feature_dim, D clip_embed_dim, K classes; tokens
are (B, W, T, H, W) of a coarser grid, 64 values each in the small encoders.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clip_common.losses import LogitScale
from videoclip.config import ModelConfig
from videoclip.models.alignment import GRID, pool_on_grid
from videoclip.models.encoders import TOKEN_DIM, Encoder, Simple3DEncoder, build_video_encoder
from videoclip.models.pooling import (
    MapGuidedVideoEncoder,
    MapPredictor,
    build_gate,
    gate_by_summary,
    resize_to_grid,
    varies,
)
from videoclip.models.stem import upcast

MEAN = (0.43216, 0.394666, 0.37645)
STD = (0.22803, 0.22145, 0.216989)
"""Mean and standard deviation of the pixels of Kinetics-400, scaled to 0 to 1, as torchvision's video models expect."""


def normalise(video_B3THW: Tensor) -> Tensor:
    """Return pixels (…, 3, T, H, W) of 0 to 255 as float32, of mean 0 and standard deviation 1 over Kinetics."""
    mean, std = (torch.tensor(values, device=video_B3THW.device)[:, None, None, None] for values in (MEAN, STD))
    return torch.addcmul(-mean / std, video_B3THW, 1 / (255 * std))


def find_changes(video_B3THW: Tensor) -> Tensor:
    """Return the change from each frame to the next, the last one twice: (B, 3, T, H, W) again."""
    changes = video_B3THW.diff(dim=2)
    return torch.cat([changes, changes[:, :, -1:]], dim=2)


@dataclass(frozen=True)
class Output:
    """Output of the model for a batch.

    Attributes:
        logits: (B, K), of the guided feature.
        video_embed, attn_embed: (B, D) unit vectors, float32; None if `align` is false.
        video_feat: (B, F), guided.
        attn_feat: (B, F); None if nothing reads it.
        video_tokens: Tokens of the video before any gate.
        video_gate: Gate from the map: (B, C or 1, T, H, W) over tokens, (B, 64) over their channels, or (B, F) over the
            feature of another backbone; None without `map_guided`.
        map_valid: (B,) bool: whether the clip has a map that is not constant.
        guided: (B,) bool: whether that map guided the pooling.
        predicted_map: (B, 1, T, H, W) on the grid of the tokens, not negative, the sum of each clip 1: where the model
            expects a clinician to look; None with `guide=map`.
        token_gain: Factor of the gate on the tokens; None without one.
    """

    logits: Tensor
    video_embed: Tensor | None
    attn_embed: Tensor | None
    video_feat: Tensor
    attn_feat: Tensor | None
    video_tokens: Tensor
    video_gate: Tensor | None
    map_valid: Tensor
    guided: Tensor
    predicted_map: Tensor | None
    token_gain: Tensor | None

    @property
    def gated_tokens(self) -> Tensor:
        """x̃: x·(1 + α·g) or x·gate; the tokens themselves if no gate acts on them."""
        return self.video_tokens if self.token_gain is None else self.video_tokens * self.token_gain


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
        self.map_dropout = config.map_dropout
        width = config.clip_feature_dim
        self.map_gate = self.map_predictor = None
        self.video_encoder: Encoder | MapGuidedVideoEncoder
        if config.map_guided and config.clip_backbone == "3dcnn":
            self.video_encoder = MapGuidedVideoEncoder(config)
            if config.guide != "map":
                self.map_predictor = MapPredictor(TOKEN_DIM)
        else:
            on_grid = config.class_pool == "grid"
            self.video_encoder = build_video_encoder(config.clip_backbone, feature_dim=width, on_grid=on_grid)
            if config.map_guided:
                self.map_gate = build_gate(config.attn_in_channels, config.map_guided_hidden_dim, width)
        self.attn_encoder = Simple3DEncoder(config.attn_in_channels, width)
        self.video_projection, self.attn_projection = (
            _build_projection(config, token_dim) for token_dim in (self.video_encoder.token_dim, TOKEN_DIM)
        )
        self.classifier = nn.Linear(width, config.model_class_num)
        start = {} if temperature is None else {"init": -math.log(temperature)}
        self.logit_scale = LogitScale(learned=temperature is None, **start)

    def forward(
        self,
        video_B3THW: Tensor,
        map_BCTHW: Tensor,
        *,
        valid_B: Tensor | None = None,
        guides_B: Tensor | None = None,
        align: bool = True,
    ) -> Output:
        """Encode, align and classify.

        In training, the maps of a share `map_dropout` of the clips, drawn by torch's generator, do not guide; the map
        encoder sees every map.

        Args:
            video_B3THW: From `normalise`.
            map_BCTHW: Not negative.
            valid_B: False for a clip without a map; None if all have one. A constant map is never valid.
            guides_B: False for a clip whose map must not guide, though it is valid; None if all may.
            align: Whether to compute the embeddings; the map encoder runs only for them and for a classifier that
                reads it.
        """
        config, encoder = self.config, self.video_encoder
        map_valid_B = varies(map_BCTHW) if valid_B is None else varies(map_BCTHW) & valid_B
        guided_B = map_valid_B if guides_B is None else map_valid_B & guides_B
        if self.training and self.map_dropout:
            guided_B = guided_B & (torch.rand(len(guided_B), device=guided_B.device) >= self.map_dropout)
        if config.guide == "predicted":
            guided_B = torch.zeros_like(guided_B)

        tokens = encoder.tokens(video_B3THW if config.video_input == "frames" else find_changes(video_B3THW))
        gate = gain = predicted = None
        if isinstance(encoder, MapGuidedVideoEncoder):
            guiding, counts_B = map_BCTHW, guided_B
            if self.map_predictor is not None:
                predicted = self.map_predictor(tokens)
                guiding, counts_B = choose_map(map_BCTHW, predicted, guided_B), torch.ones_like(guided_B)
            pooled = encoder.pool(tokens, guiding, valid_B=counts_B)
            video_BF, gate, gain = pooled.feature, pooled.gate, pooled.gain
        else:
            video_BF = encoder.pooled(tokens)
            if self.map_gate is not None:
                gate = gate_by_summary(self.map_gate, map_BCTHW, guided_B)
                video_BF = video_BF * gate

        attn_BF = attn_tokens = video_embed = attn_embed = None
        classified_BF, source = video_BF, config.clip_classifier_source
        if align or source != "video":
            attn_tokens = self.attn_encoder.tokens(map_BCTHW)
            if source != "video" or config.align_pool == "mean":
                attn_BF = self.attn_encoder.pooled(attn_tokens)
                classified_BF = {"video": video_BF, "attn": attn_BF, "fusion": (video_BF + attn_BF) / 2}[source]
        if align:
            assert attn_tokens is not None
            if config.align_pool == "grid":
                seen, attended = pool_on_grid(tokens), pool_on_grid(attn_tokens)
            else:
                assert attn_BF is not None
                seen, attended = video_BF if config.align_tokens == "gated" else encoder.pooled(tokens), attn_BF
            video_embed = F.normalize(upcast(self.video_projection(seen)), dim=1)
            attn_embed = F.normalize(upcast(self.attn_projection(attended)), dim=1)
        return Output(
            logits=self.classifier(classified_BF),
            video_embed=video_embed,
            attn_embed=attn_embed,
            video_feat=video_BF,
            attn_feat=attn_BF,
            video_tokens=tokens,
            video_gate=gate,
            map_valid=map_valid_B,
            guided=guided_B,
            predicted_map=predicted,
            token_gain=gain,
        )


def choose_map(map_BCTHW: Tensor, predicted_B1THW: Tensor, guided_B: Tensor) -> Tensor:
    """Return the maps that guide, on the grid of the tokens: those of `guided_B`, else the predicted ones."""
    given, _ = resize_to_grid(map_BCTHW, predicted_B1THW.shape[2:])
    return torch.where(guided_B[:, None, None, None, None], given, resize_to_grid(predicted_B1THW, given.shape[2:])[0])


def _build_projection(config: ModelConfig, token_dim: int) -> nn.Sequential:
    out = config.clip_embed_dim
    width, first = config.clip_feature_dim, []
    if config.align_pool == "grid":
        width = math.prod(GRID) * token_dim
        first = [nn.LayerNorm(width)]  # tokens are not negative, so that all clips start out alike without it
    return nn.Sequential(
        *first, nn.Linear(width, out), nn.GELU(), nn.Dropout(0.1), nn.Linear(out, out), nn.LayerNorm(out)
    )
