"""CLIP training for image-text retrieval with similarity-aware negative weighting."""

__version__ = "0.1.0"
