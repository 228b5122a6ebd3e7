"""Clinical gait video aligned with clinicians' attention maps and classified.

Nothing but the name stands here yet: the system is built on `clip_common` in a later release.
"""

__version__ = "0.1.0"
