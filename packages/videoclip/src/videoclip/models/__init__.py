"""Plain `nn.Module`s: encoders, map-guided pooling, and the model that aligns videos with maps."""

from videoclip.models.clip_align import Output, VideoAttentionCLIP, normalise
from videoclip.models.encoders import Simple2DEncoder, Simple3DEncoder, SimpleCNNLSTMEncoder, video_encoder
from videoclip.models.pooling import Guided, MapGuidedVideoEncoder
from videoclip.models.stem import Stem

__all__ = [
    "Guided",
    "MapGuidedVideoEncoder",
    "Output",
    "Simple2DEncoder",
    "Simple3DEncoder",
    "SimpleCNNLSTMEncoder",
    "Stem",
    "VideoAttentionCLIP",
    "normalise",
    "video_encoder",
]
