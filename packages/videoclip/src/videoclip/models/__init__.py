"""Plain `nn.Module`s: encoders, map-guided pooling, and the model that aligns videos with maps."""

from videoclip.models.clip_align import Output, VideoAttentionCLIP, normalise
from videoclip.models.encoders import Simple2DEncoder, Simple3DEncoder, SimpleCNNLSTMEncoder, build_video_encoder
from videoclip.models.pooling import MapGuidedVideoEncoder, PooledVideo
from videoclip.models.stem import Stem

__all__ = [
    "MapGuidedVideoEncoder",
    "Output",
    "PooledVideo",
    "Simple2DEncoder",
    "Simple3DEncoder",
    "SimpleCNNLSTMEncoder",
    "Stem",
    "VideoAttentionCLIP",
    "build_video_encoder",
    "normalise",
]
