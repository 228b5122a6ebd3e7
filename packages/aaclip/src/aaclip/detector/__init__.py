"""The trained detector: predict, calibrate, remember, save and load."""

from aaclip.detector.detection import Detection, Scores
from aaclip.detector.detector import Detector

__all__ = ["Detection", "Detector", "Scores"]
