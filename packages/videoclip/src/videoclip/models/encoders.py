"""Video and map encoders behind one interface: (B, C, T, H, W) → tokens → features (B, F).

Legend: B clips, C channels of a video or a map, T frames, H and W pixels, F feature_dim; tokens are (B, D, T, H, W) of
a coarser grid, D values each.
"""

import math

import torch
import torchvision
from torch import Tensor, nn

from videoclip.models.alignment import GRID, pool_on_grid
from videoclip.models.stem import Conv3d, Size, Stem

TOKEN_DIM = 64
"""Width of the small encoders' tokens."""
FRAME_DIM = 256
"""Width of the frame features that the LSTM reads, and of its state."""
RESIDUAL_DIM = 512
"""Width of the tokens of torchvision's networks."""


class Encoder(nn.Module):
    """An encoder in two steps: tokens, and the feature that is read from them.

    Attributes:
        token_dim: D.
    """

    token_dim = TOKEN_DIM

    @property
    def readout(self) -> list[nn.Module]:
        """The parts that only `pooled` uses."""
        raise NotImplementedError

    def tokens(self, x_BCTHW: Tensor) -> Tensor:
        """Return the tokens (B, D, T, H, W), not negative, of a grid coarser than the clip or map."""
        raise NotImplementedError

    def pooled(self, tokens_BDTHW: Tensor) -> Tensor:
        """Return the feature (B, F) of tokens."""
        raise NotImplementedError

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.pooled(self.tokens(x_BCTHW))


class Simple3DEncoder(Encoder):
    """Conv-BN-ReLU-MaxPool-Conv-BN-ReLU over time and space, mean over the tokens or each cell of a grid, Linear.

    Args:
        in_channels: Channels of the clip or map.
        feature_dim: F.
        on_grid: Keep places: the feature is read from the means of the cells of a grid, normalised.
    """

    kernel: Size = (3, 3, 3)
    pool: Size = (2, 2, 2)

    def __init__(self, in_channels: int, feature_dim: int, *, on_grid: bool = False) -> None:
        super().__init__()
        self.trunk = _build_trunk(in_channels, kernel=self.kernel, pool=self.pool)
        self.on_grid = on_grid
        width = math.prod(GRID) * TOKEN_DIM
        self.head = (
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, feature_dim))
            if on_grid
            else nn.Linear(TOKEN_DIM, feature_dim)
        )

    @property
    def readout(self) -> list[nn.Module]:
        """The last layer."""
        return [self.head]

    def tokens(self, x_BCTHW: Tensor) -> Tensor:
        """Return the tokens (B, 64, T/2, H/2, W/2)."""
        tokens: Tensor = self.trunk(x_BCTHW)
        return tokens

    def pooled(self, tokens_B64THW: Tensor) -> Tensor:
        """Return the feature (B, F) of the tokens."""
        feature_BF: Tensor = self.head(self.summarise(tokens_B64THW))
        return feature_BF

    def summarise(self, tokens_B64THW: Tensor) -> Tensor:
        """Return the head's input: the tokens' mean (B, 64), or those of the cells, cell by cell, (B, 32·64)."""
        return pool_on_grid(tokens_B64THW) if self.on_grid else tokens_B64THW.mean(dim=(2, 3, 4))


class Simple2DEncoder(Simple3DEncoder):
    """Simple3DEncoder frame by frame, averaged over frames: its kernels and pooling span one frame."""

    kernel = (1, 3, 3)
    pool = (1, 2, 2)


class SimpleCNNLSTMEncoder(Encoder):
    """Features of each frame, an LSTM over them, and Linear on its last state."""

    def __init__(self, in_channels: int, feature_dim: int) -> None:
        super().__init__()
        self.frames = _build_trunk(in_channels, kernel=Simple2DEncoder.kernel, pool=Simple2DEncoder.pool)
        self.frame_head = nn.Linear(TOKEN_DIM, FRAME_DIM)
        self.lstm = nn.LSTM(FRAME_DIM, FRAME_DIM, batch_first=True)
        self.head = nn.Linear(FRAME_DIM, feature_dim)

    @property
    def readout(self) -> list[nn.Module]:
        """All but the frames' convolutions."""
        return [self.frame_head, self.lstm, self.head]

    def tokens(self, x_BCTHW: Tensor) -> Tensor:
        """Return the tokens of each frame, (B, 64, T, H/2, W/2)."""
        tokens: Tensor = self.frames(x_BCTHW)
        return tokens

    def pooled(self, tokens_B64THW: Tensor) -> Tensor:
        """Return the feature (B, F) of the LSTM's last state over the frames' means."""
        frames_BT64 = tokens_B64THW.mean(dim=(3, 4)).transpose(1, 2)
        _, (last_1BS, _) = self.lstm(self.frame_head(frames_BT64))
        feature_BF: Tensor = self.head(last_1BS[0])
        return feature_BF


class TorchvisionEncoder(Encoder):
    """r3d_18, mc3_18 or r2plus1d_18 with a Linear of its own; on a CPU it runs in float32 whatever the autocast."""

    token_dim = RESIDUAL_DIM

    def __init__(self, name: str, feature_dim: int) -> None:
        super().__init__()
        self.name = name
        self.network = getattr(torchvision.models.video, name)(weights=None)
        self.network.fc = nn.Linear(self.network.fc.in_features, feature_dim)

    @property
    def readout(self) -> list[nn.Module]:
        """The last layer."""
        return [self.network.fc]

    def tokens(self, x_B3THW: Tensor) -> Tensor:
        """Return the output of the last stage, (B, 512, T/8, H/16, W/16)."""
        network = self.network
        with torch.autocast("cpu", enabled=False):  # see `videoclip.models.stem.conv3d`
            for stage in (network.stem, network.layer1, network.layer2, network.layer3, network.layer4):
                x_B3THW = stage(x_B3THW)
        return x_B3THW

    def pooled(self, tokens_BDTHW: Tensor) -> Tensor:
        """Return the feature (B, F) of the tokens' mean."""
        with torch.autocast("cpu", enabled=False):
            feature_BF: Tensor = self.network.fc(self.network.avgpool(tokens_BDTHW).flatten(1))
        return feature_BF


def _build_trunk(in_channels: int, *, kernel: Size, pool: Size) -> nn.Sequential:
    return nn.Sequential(
        Stem(in_channels, 32, kernel=kernel, pool=pool),
        Conv3d(32, TOKEN_DIM, kernel),
        nn.BatchNorm3d(TOKEN_DIM),
        nn.ReLU(inplace=True),
    )


def build_video_encoder(backbone: str, *, feature_dim: int, on_grid: bool = False) -> Encoder:
    """Return the encoder that `model.clip_backbone` names, with random weights.

    Args:
        backbone: 3dcnn, 2dcnn, cnn_lstm, or one of torchvision's: r3d_18, mc3_18, r2plus1d_18.
        feature_dim: F.
        on_grid: As for `Simple3DEncoder`; the others have no such choice.
    """
    cnn = {"3dcnn": Simple3DEncoder, "2dcnn": Simple2DEncoder}
    if backbone in cnn:
        return cnn[backbone](3, feature_dim, on_grid=on_grid)
    return SimpleCNNLSTMEncoder(3, feature_dim) if backbone == "cnn_lstm" else TorchvisionEncoder(backbone, feature_dim)
