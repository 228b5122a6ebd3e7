"""Clinical gait video aligned with clinicians' attention maps and classified.

    from videoclip import Classifier
    Classifier.from_pretrained("runs/videoclip/first").predict("clip.mp4").probabilities

Names load when first used, so that `import videoclip` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from videoclip.classifier.classifier import Classifier
    from videoclip.config import Config
    from videoclip.data import VideoMapDataset, read_clips, subject_folds
    from videoclip.models import VideoAttentionCLIP
    from videoclip.scoring.evaluation import evaluate
    from videoclip.scoring.score import score
    from videoclip.series.ablation import ablate
    from videoclip.series.crossval import cross_validate
    from videoclip.training.experiment import train
    from videoclip.training.losses import VideoClipLoss

_HOMES = {
    "Classifier": "videoclip.classifier.classifier",
    "Config": "videoclip.config",
    "VideoAttentionCLIP": "videoclip.models",
    "VideoClipLoss": "videoclip.training.losses",
    "VideoMapDataset": "videoclip.data",
    "ablate": "videoclip.series.ablation",
    "cross_validate": "videoclip.series.crossval",
    "evaluate": "videoclip.scoring.evaluation",
    "read_clips": "videoclip.data",
    "subject_folds": "videoclip.data",
    "score": "videoclip.scoring.score",
    "train": "videoclip.training.experiment",
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
