"""Metrics on torch and numpy alone: retrieval with intervals, and detection curves in constant memory.

The curves of `StreamingAUPRO` also need scipy, for the connected regions of a mask.
"""

from clip_common.metrics.aupro import StreamingAUPRO
from clip_common.metrics.bootstrap import Paired
from clip_common.metrics.curves import CurveResult, StreamingCurve
from clip_common.metrics.retrieval import (
    ImageTextResult,
    RetrievalResult,
    image_text_retrieval,
    paired_bootstrap,
    retrieval_metrics,
)

__all__ = [
    "CurveResult",
    "ImageTextResult",
    "Paired",
    "RetrievalResult",
    "StreamingAUPRO",
    "StreamingCurve",
    "image_text_retrieval",
    "paired_bootstrap",
    "retrieval_metrics",
]
