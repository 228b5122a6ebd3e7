"""Clinical gait video aligned with clinicians' attention maps and classified.

    from videoclip import Classifier
    Classifier.from_pretrained("runs/videoclip/first").predict("clip.mp4").probabilities

Names load when they are first used, so that `import videoclip` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from videoclip.ablation import ablate
    from videoclip.classifier import Classifier
    from videoclip.config import Config
    from videoclip.crossval import cross_validate
    from videoclip.data import VideoMapDataset, read_clips, subject_folds
    from videoclip.evaluation import evaluate
    from videoclip.experiment import train
    from videoclip.losses import VideoClipLoss
    from videoclip.models import VideoAttentionCLIP
    from videoclip.scoring import score

_HOMES = {
    "Classifier": "videoclip.classifier",
    "Config": "videoclip.config",
    "VideoAttentionCLIP": "videoclip.models",
    "VideoClipLoss": "videoclip.losses",
    "VideoMapDataset": "videoclip.data",
    "ablate": "videoclip.ablation",
    "cross_validate": "videoclip.crossval",
    "evaluate": "videoclip.evaluation",
    "read_clips": "videoclip.data",
    "subject_folds": "videoclip.data",
    "score": "videoclip.scoring",
    "train": "videoclip.experiment",
}

__all__ = [
    "Classifier",
    "Config",
    "VideoAttentionCLIP",
    "VideoClipLoss",
    "VideoMapDataset",
    "ablate",
    "cross_validate",
    "evaluate",
    "read_clips",
    "score",
    "subject_folds",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'videoclip' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
