"""Map-guided pooling of a video's tokens.

Legend: B clips, C channels of a map, T, H, W the grid of the tokens (of an input map: its own grid), N = T·H·W,
64 the tokens' width, F feature_dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videoclip.config import ModelConfig
from videoclip.models.alignment import pool_on_grid
from videoclip.models.encoders import TOKEN_DIM, Simple3DEncoder
from videoclip.models.stem import Conv3d, upcast

EVEN = 1e-4
"""A map whose values differ by less than this share of the largest is constant; the difference is rounding."""


@dataclass(frozen=True)
class PooledVideo:
    """Result of `MapGuidedVideoEncoder`.

    Attributes:
        feature: (B, F).
        tokens: (B, 64, T, H, W), before any gate.
        gate: g or the weights of `weighted_pool`, (B, C or 1, T, H, W), or the channel gate (B, 64); ones for a clip
            without a valid map.
        gain: Factor on the tokens: 1 + α·g (B, 1, T, H, W), or the gate (B, 64, 1, 1, 1); None for `weighted_pool`,
            which has no gate.
    """

    feature: Tensor
    tokens: Tensor
    gate: Tensor
    gain: Tensor | None


class MapGuidedVideoEncoder(nn.Module):
    """A Simple3DEncoder whose tokens are gated and pooled by the map.

    With a = the map resized to the tokens' grid and scaled to 0 to 1 in each clip:

        spatiotemporal   g = a, or sigmoid(conv(a));   x̃ = x·(1 + α·g), α learned;   f = Σ g·x̃ / Σ g
        weighted_pool    f = Σ a·x / Σ a
        channel          f = mean of x·sigmoid(MLP(the map's means))

    With `class_pool=grid` the sums and means are those of each cell of a grid instead.

    A map of several channels is averaged first, or each channel pools separately and the features are averaged
    (`gate_channels`). A clip whose map is constant or not valid is pooled evenly and without a gate: its feature is
    that of Simple3DEncoder. The same holds for a constant channel that pools separately.

    Args:
        config: The section `model`: `map_guided_type`, `map_guided_sigmoid_gate`, `gate_channels`, and the sizes.
    """

    token_dim = TOKEN_DIM

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind = config.map_guided_type
        self.each = config.gate_channels == "each"
        self.encoder = Simple3DEncoder(3, config.clip_feature_dim, on_grid=config.class_pool == "grid")
        self.channel_gate = self.sigmoid_gate = self.alpha = None
        if self.kind == "channel":
            self.channel_gate = build_gate(config.attn_in_channels, config.map_guided_hidden_dim, TOKEN_DIM)
        if self.kind == "spatiotemporal":
            self.alpha = nn.Parameter(torch.ones(()))
            if config.map_guided_sigmoid_gate:
                self.sigmoid_gate = nn.Sequential(
                    nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv3d(8, 1, 1), nn.Sigmoid()
                )

    def forward(self, video_B3THW: Tensor, map_BCTHW: Tensor, *, valid_B: Tensor) -> PooledVideo:
        """Encode and pool videos: `pool` of `tokens`."""
        return self.pool(self.tokens(video_B3THW), map_BCTHW, valid_B=valid_B)

    def tokens(self, video_B3THW: Tensor) -> Tensor:
        """Return the tokens (B, 64, T, H, W) of normalised frames, which no map has touched."""
        return self.encoder.tokens(video_B3THW)

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return the feature (B, F) of the tokens' mean, which no map has touched."""
        return self.encoder.pooled(tokens)

    @property
    def readout(self) -> list[nn.Module]:
        """The last layer."""
        return self.encoder.readout

    def pool(self, tokens: Tensor, map_BCTHW: Tensor, *, valid_B: Tensor) -> PooledVideo:
        """Gate and pool tokens.

        Args:
            tokens: From `tokens`.
            map_BCTHW: Maps of any size, not negative.
            valid_B: Whether the map guides; False pools evenly.
        """
        if self.channel_gate is not None:
            gate_B64 = gate_by_summary(self.channel_gate, map_BCTHW, valid_B & varies(map_BCTHW))
            means = self.encoder.summarise(tokens)
            # the means of x·gate, without x·gate
            feature = self.encoder.head(means * gate_B64.repeat(1, means.shape[1] // TOKEN_DIM))
            return PooledVideo(feature, tokens, gate_B64, gate_B64[:, :, None, None, None])
        map_BCTHW = map_BCTHW if self.each else map_BCTHW.mean(dim=1, keepdim=True)
        gate, counted_BC = resize_to_grid(map_BCTHW, tokens.shape[2:])
        if self.sigmoid_gate is not None:
            gate = self.sigmoid_gate(gate.flatten(0, 1)[:, None]).to(gate.dtype).view_as(gate)
        counted_BC111 = (counted_BC & valid_B[:, None])[:, :, None, None, None]
        gate = torch.where(counted_BC111, gate, 1.0)
        opened = gate.new_zeros(()) if self.alpha is None else self.alpha * counted_BC111 * gate
        # Σ g·x̃ / Σ g = Σ (g + α·g²)·x / Σ g: one product with the tokens, and no gated copy of them
        weights = gate * (1 + opened) / gate.sum(dim=(2, 3, 4), keepdim=True)
        weights_B1THW = weights.mean(dim=1, keepdim=True).to(tokens.dtype)
        if self.encoder.on_grid:  # N times the weights, so that an even map leaves the means of the cells
            pooled = pool_on_grid(tokens * (weights_B1THW * weights_B1THW[0].numel()))
        else:
            pooled = (tokens.flatten(2) @ weights_B1THW.flatten(2).transpose(1, 2)).squeeze(2)
        gain = None if self.alpha is None else 1 + opened.mean(dim=1, keepdim=True)
        return PooledVideo(self.encoder.head(pooled), tokens, gate, gain)


class MapPredictor(nn.Sequential):
    """Tokens (B, D, T, H, W) to where a clinician would look: (B, 1, T, H, W), a softmax over the T·H·W tokens."""

    def __init__(self, token_dim: int) -> None:
        super().__init__(Conv3d(token_dim, 16, (3, 3, 3)), nn.ReLU(inplace=True), Conv3d(16, 1, (1, 1, 1)))

    def forward(self, tokens: Tensor) -> Tensor:
        logits_B1THW = upcast(super().forward(tokens))
        return logits_B1THW.flatten(1).softmax(dim=1).view_as(logits_B1THW)


def resize_to_grid(map_BCTHW: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Return maps resized to a grid of tokens, each channel scaled to 0 to 1, and whether each varies (B, C)."""
    a_BCTHW = F.interpolate(upcast(map_BCTHW), size=size, mode="trilinear", align_corners=False)
    low, high = a_BCTHW.amin(dim=(2, 3, 4), keepdim=True), a_BCTHW.amax(dim=(2, 3, 4), keepdim=True)
    vary_BC = varies(a_BCTHW.flatten(0, 1)).view(a_BCTHW.shape[:2])
    span = torch.where(vary_BC[:, :, None, None, None], high - low, 1.0)
    return (a_BCTHW - low) / span, vary_BC


def token_energy(tokens_BDTHW: Tensor) -> Tensor:
    """Return the energy of tokens, the mean over their values of the squares, (B, 1, T, H, W) float32 or more."""
    return upcast(tokens_BDTHW).square().mean(dim=1, keepdim=True)


def correlate(x_BN: Tensor, y_BN: Tensor) -> Tensor:
    """Return Pearson's correlation of each pair of rows, (B,); NaN for a constant row."""
    x_BN, y_BN = (F.normalize(z_BN - z_BN.mean(dim=1, keepdim=True), dim=1, eps=0.0) for z_BN in (x_BN, y_BN))
    return (x_BN * y_BN).sum(dim=1)


def varies(x: Tensor) -> Tensor:
    """Return whether each x[b] varies by more than rounding, (B,) bool."""
    low_B, high_B = x.flatten(1).aminmax(dim=1)
    return high_B - low_B > EVEN * torch.maximum(low_B.abs(), high_B.abs())


def build_gate(channels: int, hidden: int, out: int) -> nn.Sequential:
    """Return the MLP from a map's channel means to a gate (…, out) from 0 to 1."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, out), nn.Sigmoid())


def gate_by_summary(gate: nn.Module, map_BCTHW: Tensor, valid_B: Tensor) -> Tensor:
    """Return the gate of each map's channel means; ones for maps that are not valid."""
    return torch.where(valid_B[:, None], gate(map_BCTHW.mean(dim=(2, 3, 4))), 1.0)
