"""What the four CLIP systems share. Import the part you need: `clip_common.losses`, `.metrics`, `.backbones`, …

The package itself imports nothing, so that a loss costs torch and numpy only and `--help` costs neither.
"""

__version__ = "0.1.0"
