"""Zero-shot anomaly detection with adapted CLIP.

Nothing but the name stands here yet: the system is built on `clip_common` in a later release.
"""

__version__ = "0.1.0"
