"""Zero-shot anomaly detection with adapted CLIP: train once, then find defects in any image of any noun.

    from aaclip import Detector
    Detector.from_pretrained("runs/aaclip/first").predict("part.jpg", name="metal nut")

Names load when they are first used, so that `import aaclip` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from aaclip.config import Config
    from aaclip.data import read_dataset
    from aaclip.detector.detection import Detection
    from aaclip.detector.detector import Detector
    from aaclip.scoring.evaluation import evaluate
    from aaclip.scoring.score import score
    from aaclip.training.experiment import train

_HOMES = {
    "Config": "aaclip.config",
    "Detection": "aaclip.detector.detection",
    "Detector": "aaclip.detector.detector",
    "evaluate": "aaclip.scoring.evaluation",
    "read_dataset": "aaclip.data",
    "score": "aaclip.scoring.score",
    "train": "aaclip.training.experiment",
}

__all__ = ["Config", "Detection", "Detector", "evaluate", "read_dataset", "score", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'aaclip' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
