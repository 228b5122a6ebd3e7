"""The frozen CLIP and the trained modules inside and after it: plain `nn.Module`s; prompts and maps."""

from aaclip.models.anomaly import AnomalyModel, Evidence, PlainCLIP

__all__ = ["AnomalyModel", "Evidence", "PlainCLIP"]
