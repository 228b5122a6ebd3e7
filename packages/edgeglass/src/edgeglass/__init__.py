"""Images, text and audio in one nested (Matryoshka) space: align encoders, embed files, search at any width.

    from edgeglass import Aligner, Index
    aligner = Aligner.from_pretrained("runs/edgeglass/first")
    aligner.encode(texts=["a red ball"], dim=128)
    Index.open("index/").search("a red ball", k=10)

Names load when they are first used, so that `import edgeglass` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgeglass.aligner.aligner import Aligner
    from edgeglass.aligner.index import Index
    from edgeglass.config import Config

_HOMES = {
    "Aligner": "edgeglass.aligner.aligner",
    "Config": "edgeglass.config",
    "Index": "edgeglass.aligner.index",
}

__all__ = ["Aligner", "Config", "Index"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeglass' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
