"""Images, text and audio in one nested (Matryoshka) space: align, embed, search; and a language model that sees.

    from edgeglass import VLM, Aligner, Index
    aligner = Aligner.from_pretrained("runs/edgeglass/first")
    aligner.encode(texts=["a red ball"], dim=128)
    Index.build(aligner, "photos/", "index/").search("a red ball", k=10)
    VLM.from_pretrained("runs/edgeglass/seeing").ask("photo.jpg", "what colour is the ball?")

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
    from edgeglass.config import Config, VlmConfig
    from edgeglass.data import Sample, read_samples
    from edgeglass.data.conversations import read_conversations
    from edgeglass.models.alignment import MultimodalAlignmentModel
    from edgeglass.models.building import build_model
    from edgeglass.models.encoders import AudioEncoder, TextEncoder, VisionEncoder
    from edgeglass.models.fusion import MultimodalFusion
    from edgeglass.models.perceiver import PerceiverResampler
    from edgeglass.models.vlm.qwen import QwenDecoder
    from edgeglass.models.vlm.qwen_vlm import QwenVLM
    from edgeglass.models.vlm.trm import LatentRecursion, TRMLayer
    from edgeglass.models.vlm.trm_decoder import TRMDecoder
    from edgeglass.scoring.score import score
    from edgeglass.scoring.vlm_score import score_vlm
    from edgeglass.training.experiment import train as train_alignment
    from edgeglass.training.losses import AlignmentLoss, CorpusAlignmentLoss, TriModalAlignmentLoss
    from edgeglass.training.vlm_experiment import train_vlm
    from edgeglass.vlm.vlm import VLM

_HOMES = {
    "Aligner": "edgeglass.aligner.aligner",
    "AlignmentLoss": "edgeglass.training.losses",
    "AudioEncoder": "edgeglass.models.encoders",
    "Config": "edgeglass.config",
    "CorpusAlignmentLoss": "edgeglass.training.losses",
    "Hit": "edgeglass.aligner.index",
    "Index": "edgeglass.aligner.index",
    "LatentRecursion": "edgeglass.models.vlm.trm",
    "MultimodalAlignmentModel": "edgeglass.models.alignment",
    "MultimodalFusion": "edgeglass.models.fusion",
    "PerceiverResampler": "edgeglass.models.perceiver",
    "QwenDecoder": "edgeglass.models.vlm.qwen",
    "QwenVLM": "edgeglass.models.vlm.qwen_vlm",
    "Sample": "edgeglass.data",
    "TRMDecoder": "edgeglass.models.vlm.trm_decoder",
    "TRMLayer": "edgeglass.models.vlm.trm",
    "TextEncoder": "edgeglass.models.encoders",
    "TriModalAlignmentLoss": "edgeglass.training.losses",
    "VLM": "edgeglass.vlm.vlm",
    "VisionEncoder": "edgeglass.models.encoders",
    "VlmConfig": "edgeglass.config",
    "build_model": "edgeglass.models.building",
    "calibrate": "edgeglass.aligner.calibration",
    "export_model": "edgeglass.aligner.export",
    "read_conversations": "edgeglass.data.conversations",
    "read_samples": "edgeglass.data",
    "score": "edgeglass.scoring.score",
    "score_vlm": "edgeglass.scoring.vlm_score",
    "train_alignment": "edgeglass.training.experiment",
    "train_vlm": "edgeglass.training.vlm_experiment",
}
_NAMES_THERE = {"train_alignment": "train"}
"""Names that are others in their modules: every system has a `train`, and this one has `train_vlm` too."""

__all__ = [
    "VLM",
    "Aligner",
    "AlignmentLoss",
    "AudioEncoder",
    "Config",
    "CorpusAlignmentLoss",
    "Hit",
    "Index",
    "LatentRecursion",
    "MultimodalAlignmentModel",
    "MultimodalFusion",
    "PerceiverResampler",
    "QwenDecoder",
    "QwenVLM",
    "Sample",
    "TRMDecoder",
    "TRMLayer",
    "TextEncoder",
    "TriModalAlignmentLoss",
    "VisionEncoder",
    "VlmConfig",
    "build_model",
    "calibrate",
    "export_model",
    "read_conversations",
    "read_samples",
    "score",
    "score_vlm",
    "train_alignment",
    "train_vlm",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeglass' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), _NAMES_THERE.get(name, name))
