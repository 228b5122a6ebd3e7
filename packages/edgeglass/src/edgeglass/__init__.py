"""Images, text and audio in one nested (Matryoshka) space: align encoders, embed files, search at any width.

    from edgeglass import Aligner, Index
    aligner = Aligner.from_pretrained("runs/edgeglass/first")
    aligner.encode(texts=["a red ball"], dim=128)
    Index.build(aligner, "photos/", "index/").search("a red ball", k=10)

Names load when they are first used, so that `import edgeglass` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgeglass.aligner.aligner import Aligner
    from edgeglass.aligner.calibration import calibrate
    from edgeglass.aligner.export import export_model
    from edgeglass.aligner.index import Hit, Index
    from edgeglass.config import Config
    from edgeglass.data import Sample, read_samples
    from edgeglass.models.alignment import MultimodalAlignmentModel
    from edgeglass.models.building import build_model
    from edgeglass.models.encoders import AudioEncoder, TextEncoder, VisionEncoder
    from edgeglass.models.fusion import MultimodalFusion
    from edgeglass.models.perceiver import PerceiverResampler
    from edgeglass.scoring.score import score
    from edgeglass.training.experiment import train as train_alignment
    from edgeglass.training.losses import AlignmentLoss, CorpusAlignmentLoss, TriModalAlignmentLoss

_HOMES = {
    "Aligner": "edgeglass.aligner.aligner",
    "AlignmentLoss": "edgeglass.training.losses",
    "AudioEncoder": "edgeglass.models.encoders",
    "Config": "edgeglass.config",
    "CorpusAlignmentLoss": "edgeglass.training.losses",
    "Hit": "edgeglass.aligner.index",
    "Index": "edgeglass.aligner.index",
    "MultimodalAlignmentModel": "edgeglass.models.alignment",
    "MultimodalFusion": "edgeglass.models.fusion",
    "PerceiverResampler": "edgeglass.models.perceiver",
    "Sample": "edgeglass.data",
    "TextEncoder": "edgeglass.models.encoders",
    "TriModalAlignmentLoss": "edgeglass.training.losses",
    "VisionEncoder": "edgeglass.models.encoders",
    "build_model": "edgeglass.models.building",
    "calibrate": "edgeglass.aligner.calibration",
    "export_model": "edgeglass.aligner.export",
    "read_samples": "edgeglass.data",
    "score": "edgeglass.scoring.score",
    "train_alignment": "edgeglass.training.experiment",
}
_NAMES_THERE = {"train_alignment": "train"}
"""Names that are others in their modules: every system has a `train`, and this one will train more than alignment."""

__all__ = [
    "Aligner",
    "AlignmentLoss",
    "AudioEncoder",
    "Config",
    "CorpusAlignmentLoss",
    "Hit",
    "Index",
    "MultimodalAlignmentModel",
    "MultimodalFusion",
    "PerceiverResampler",
    "Sample",
    "TextEncoder",
    "TriModalAlignmentLoss",
    "VisionEncoder",
    "build_model",
    "calibrate",
    "export_model",
    "read_samples",
    "score",
    "train_alignment",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeglass' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), _NAMES_THERE.get(name, name))
