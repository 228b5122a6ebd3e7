"""Video and map encoders behind one interface: (B, C, T, H, W) → features (B, F).

Legend: B clips, C channels of a video or a map, T frames, H and W pixels, F feature_dim; tokens are (B, 64, T, H, W) of
a coarser grid.
"""

import torch
import torchvision
from torch import Tensor, nn

from videoclip.models.stem import Conv3d, Size, Stem

TOKEN_DIM = 64
"""Width of the small encoders' tokens."""
FRAME_DIM = 256
"""Width of the frame features that the LSTM reads, and of its state."""


class Simple3DEncoder(nn.Module):
    """Conv-BN-ReLU-MaxPool-Conv-BN-ReLU over time and space, mean over the tokens, Linear.

    Args:
        in_channels: Channels of the clip or map.
        feature_dim: F.
    """

    kernel: Size = (3, 3, 3)
    pool: Size = (2, 2, 2)

    def __init__(self, in_channels: int, feature_dim: int) -> None:
        super().__init__()
        self.trunk = _build_trunk(in_channels, kernel=self.kernel, pool=self.pool)
        self.head = nn.Linear(TOKEN_DIM, feature_dim)

    def tokens(self, x_BCTHW: Tensor) -> Tensor:
        """Return the tokens (B, 64, T/2, H/2, W/2), not negative."""
        tokens: Tensor = self.trunk(x_BCTHW)
        return tokens

    def pooled(self, tokens_B64THW: Tensor) -> Tensor:
        """Return the feature (B, F) of the tokens' mean."""
        feature_BF: Tensor = self.head(tokens_B64THW.mean(dim=(2, 3, 4)))
        return feature_BF

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        return self.pooled(self.tokens(x_BCTHW))


class Simple2DEncoder(Simple3DEncoder):
    """Simple3DEncoder frame by frame, averaged over frames: its kernels and pooling span one frame."""

    kernel = (1, 3, 3)
    pool = (1, 2, 2)


class SimpleCNNLSTMEncoder(nn.Module):
    """Features of each frame, an LSTM over them, and Linear on its last state."""

    def __init__(self, in_channels: int, feature_dim: int) -> None:
        super().__init__()
        self.frames = _build_trunk(in_channels, kernel=Simple2DEncoder.kernel, pool=Simple2DEncoder.pool)
        self.frame_head = nn.Linear(TOKEN_DIM, FRAME_DIM)
        self.lstm = nn.LSTM(FRAME_DIM, FRAME_DIM, batch_first=True)
        self.head = nn.Linear(FRAME_DIM, feature_dim)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        frames_BT64 = self.frames(x_BCTHW).mean(dim=(3, 4)).transpose(1, 2)
        _, (last_1BS, _) = self.lstm(self.frame_head(frames_BT64))
        feature_BF: Tensor = self.head(last_1BS[0])
        return feature_BF


class TorchvisionEncoder(nn.Module):
    """r3d_18, mc3_18 or r2plus1d_18 with a Linear of its own; on a CPU it runs in float32 whatever the autocast."""

    def __init__(self, name: str, feature_dim: int) -> None:
        super().__init__()
        self.name = name
        self.network = getattr(torchvision.models.video, name)(weights=None)
        self.network.fc = nn.Linear(self.network.fc.in_features, feature_dim)

    def forward(self, x_B3THW: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # see `videoclip.models.stem.conv3d`
            feature_BF: Tensor = self.network(x_B3THW)
        return feature_BF


def _build_trunk(in_channels: int, *, kernel: Size, pool: Size) -> nn.Sequential:
    return nn.Sequential(
        Stem(in_channels, 32, kernel=kernel, pool=pool),
        Conv3d(32, TOKEN_DIM, kernel),
        nn.BatchNorm3d(TOKEN_DIM),
        nn.ReLU(inplace=True),
    )


def build_video_encoder(backbone: str, *, feature_dim: int) -> nn.Module:
    """Return the encoder that `model.clip_backbone` names, with random weights.

    Args:
        backbone: 3dcnn, 2dcnn, cnn_lstm, or one of torchvision's: r3d_18, mc3_18, r2plus1d_18.
        feature_dim: F.
    """
    small = {"3dcnn": Simple3DEncoder, "2dcnn": Simple2DEncoder, "cnn_lstm": SimpleCNNLSTMEncoder}
    return small[backbone](3, feature_dim) if backbone in small else TorchvisionEncoder(backbone, feature_dim)
