"""The frozen CLIP with what is trained inside and behind it; plain `nn.Module`s."""

from aaclip.models.anomaly import AnomalyModel, Evidence, PlainCLIP

__all__ = ["AnomalyModel", "Evidence", "PlainCLIP"]
