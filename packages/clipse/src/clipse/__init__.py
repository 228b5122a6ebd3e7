"""CLIP training for image-text retrieval with similarity-aware negative weighting.

    from clipse import Retriever
    Retriever.from_pretrained("runs/clipse/first").index("photos/").search("a dog in the snow", k=10)

Names load when they are first used, so that `import clipse` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from clipse.config import Config
    from clipse.data import CLIPCollator, Flickr8kDataset, TopicalBatchSampler, load_captions, read_records
    from clipse.models.retrieval import RetrievalModel
    from clipse.retriever.retriever import Retriever
    from clipse.scoring.score import score, score_records
    from clipse.training.experiment import train
    from clipse.training.losses import RetrievalLoss, SANWBandpass, SANWDebias

_HOMES = {
    "CLIPCollator": "clipse.data",
    "Config": "clipse.config",
    "Flickr8kDataset": "clipse.data",
    "RetrievalLoss": "clipse.training.losses",
    "RetrievalModel": "clipse.models.retrieval",
    "Retriever": "clipse.retriever.retriever",
    "SANWBandpass": "clipse.training.losses",
    "SANWDebias": "clipse.training.losses",
    "TopicalBatchSampler": "clipse.data",
    "load_captions": "clipse.data",
    "read_records": "clipse.data",
    "score": "clipse.scoring.score",
    "score_records": "clipse.scoring.score",
    "train": "clipse.training.experiment",
}

__all__ = [
    "CLIPCollator",
    "Config",
    "Flickr8kDataset",
    "RetrievalLoss",
    "RetrievalModel",
    "Retriever",
    "SANWBandpass",
    "SANWDebias",
    "TopicalBatchSampler",
    "load_captions",
    "read_records",
    "score",
    "score_records",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'clipse' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
