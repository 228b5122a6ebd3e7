"""From pixels, class embeddings and remembered images to a map and an image score: one `nn.Module`, all in torch.

Shapes: B images, S pixels a side of the model's input, D shared width.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn

from aaclip.detector.calibration import Logistic, top_mean
from aaclip.detector.memory import Level, measure_surprise
from aaclip.models import AnomalyModel, Evidence, PlainCLIP
from aaclip.models.contexts import TextContexts
from aaclip.models.maps import anomaly_map, mean_level


class Scores(NamedTuple):
    """Scores of a batch of images, before any verdict.

    Attributes:
        maps_BSS: Mean logit difference of the levels, blurred: above 0 is more abnormal than normal.
        classification_B: Cosine to abnormal minus cosine to normal, of each image as a whole.
        abnormal_B: Cosine to abnormal alone.
        top_B: Mean of the hottest hundredth of each map's patches, before the blur.
        logits_B: Image scores before the sigmoid, float64: in the same order, and still apart where scores round to 1.
        scores_B: Image scores from 0 to 1, float64.
    """

    maps_BSS: Tensor
    classification_B: Tensor
    abnormal_B: Tensor
    top_B: Tensor
    logits_B: Tensor
    scores_B: Tensor

    def select(self, rows: Tensor) -> "Scores":
        """Return the scores of some images of the batch."""
        return Scores(*(values_B[rows] for values_B in self))


class Scorer(nn.Module):
    """The whole computation of a detector on one input size; `torch.export` traces it, for any batch.

    Args:
        model: Trained, or plain CLIP.
        logistic: Weights of the image score.
        domain: Width of the map's blur.
    """

    def __init__(
        self, model: AnomalyModel | PlainCLIP, *, logistic: Logistic, domain: Literal["industrial", "medical"]
    ) -> None:
        super().__init__()
        self.model = model
        self.logistic = logistic
        self.domain: Literal["industrial", "medical"] = domain

    @property
    def size(self) -> int:
        """S."""
        return self.model.bundle.image.spec.image_size

    def forward(
        self,
        images_B3SS: Tensor,
        text_BD2: Tensor,
        memory: Sequence[Level] = (),
        context: TextContexts | None = None,
    ) -> Scores:
        """Score preprocessed images.

        Args:
            images_B3SS: Preprocessed.
            text_BD2: Embedding of the class of each.
            memory: Levels of a `Memory` of their class, whose surprise is added to the maps; empty without one.
            context: What each image attends to; None without cross-attention.
        """
        features = self.model.features(images_B3SS, context)
        evidence = Evidence.of(features, text_BD2, temperature=self.model.temperature)
        levels = evidence.levels
        if memory:
            surprises = measure_surprise(features.levels, memory)
            levels = [level + surprise for level, surprise in zip(levels, surprises, strict=True)]
        weights_K = self.model.level_weights
        maps_BSS = anomaly_map(levels, size=self.size, domain=self.domain, weights_K=weights_K)
        # before the blur, which would flatten a defect of its own width
        top_B = top_mean(mean_level(levels, weights_K=weights_K))
        classification_B = evidence.classification.float()
        logits_B = self.logistic.logits(classification_B, top_B)
        return Scores(
            maps_BSS, classification_B, evidence.abnormal.float(), top_B, logits_B, scores_B=logits_B.sigmoid()
        )
