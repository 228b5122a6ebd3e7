"""From a detector and labelled images to metrics: every class in one pass, in constant memory.

B images of a batch, S pixels of the model's input.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from aaclip.data import AnomalyDataset, Batch, Record, collate
from aaclip.data.records import group_by_class
from aaclip.data.unreadable import Attempts, Unreadable, all_unreadable
from aaclip.detector.calibration import compute_relative_scores
from aaclip.detector.detector import Detector
from aaclip.detector.scorer import Scores
from aaclip.scoring.bootstrap import ClassScores
from aaclip.scoring.metrics import ClassMetrics, average_classes
from clip_common.reporting import Progress


@dataclass(frozen=True)
class Evaluation:
    """Metrics of every class of a set.

    Attributes:
        classes: By class, the value of each metric, 0 to 1; None if the class lacks what the metric needs.
        intervals: By class, the 95 % bootstrap interval over images of each metric that exists.
        images: By class, how many images were scored; a class without readable images is absent everywhere.
        failures: Image that was not scored → what is wrong with it or with its mask.
        scores: By class, what a comparison with another detector needs.
    """

    classes: dict[str, dict[str, float | None]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    images: dict[str, int]
    failures: dict[str, str] = field(default_factory=dict)
    scores: dict[str, ClassScores] = field(default_factory=dict, repr=False)

    @property
    def mean(self) -> dict[str, float | None]:
        """Each metric's mean over the classes that have it."""
        return {name: mean.value for name, mean in average_classes(self.classes).items()}


def evaluate(
    detector: Detector,
    records: Sequence[Record],
    *,
    batch_size: int = 8,
    workers: int = 0,
    samples: int = 1000,
    progress: Progress | None = None,
) -> Evaluation:
    """Score labelled images, class by class. An unreadable image or mask does not stop the others.

    Args:
        detector: Trained, or plain CLIP.
        records: Of any number of classes.
        batch_size: Images at a time; changes no score.
        workers: Loader processes.
        samples: Resamples of the intervals.
        progress: Called as `progress(done, total)`.

    Raises:
        ValueError: No images, or none that can be read.
    """
    if not records:
        raise ValueError("there is no image to test on: give a set with a test split")
    found, done = Evaluation({}, {}, {}), 0
    for name, own in sorted(group_by_class(records).items()):
        dataset = AnomalyDataset(own, preprocess=detector.preprocess, size=detector.size, seed=0)
        metrics, relative, scored = ClassMetrics(), Relative(), 0
        loader = DataLoader(Attempts(dataset), batch_size=batch_size, num_workers=workers, collate_fn=list)
        for attempts in loader:
            samples_B = [one for one in attempts if not isinstance(one, Unreadable)]
            found.failures.update((one.file, one.problem) for one in attempts if isinstance(one, Unreadable))
            if samples_B:
                update(metrics, relative, detector, collate(samples_B), name=name)
            scored, done = scored + len(samples_B), done + len(attempts)
            if progress is not None:
                progress(done, len(records))
        if scored:
            if detector.config.score.image == "official":
                metrics.rescore(relative.scores(domain=detector.config.score.domain))
            scores = found.scores[name] = metrics.scores()
            found.classes[name] = dict(scores.values)
            found.intervals[name] = scores.intervals(samples=samples)
            found.images[name] = scored
    if not found.classes:
        raise all_unreadable(found.failures)
    return found


@dataclass
class Relative:
    """Values behind the released code's image scores of a class (`calibration.compute_relative_scores`).

    Attributes:
        abnormal: Cosines to "abnormal", one array for each batch.
        peaks: Highest values of the maps, one array for each batch.
        lowest: Lowest value of all maps so far.
    """

    abnormal: list[NDArray[np.float32]] = field(default_factory=list)
    peaks: list[NDArray[np.float32]] = field(default_factory=list)
    lowest: float = math.inf

    def add(self, scores: Scores) -> None:
        """Add a batch."""
        self.abnormal.append(scores.abnormal_B.cpu().numpy())
        self.peaks.append(scores.maps_BSS.amax(dim=(1, 2)).cpu().numpy())
        self.lowest = min(self.lowest, scores.maps_BSS.min().item())

    def scores(self, *, domain: Literal["industrial", "medical"]) -> NDArray[np.float64]:
        """Return (N,) scores, in the order in which images were added."""
        return compute_relative_scores(
            np.concatenate(self.abnormal), np.concatenate(self.peaks), lowest=self.lowest, domain=domain
        )


def update(metrics: ClassMetrics, relative: Relative, detector: Detector, batch: Batch, *, name: str) -> None:
    """Score a batch of one class; anomalous images without a mask count as images only."""
    text_BD2 = detector.class_embedding(name).expand(len(batch.names), -1, -1)
    memory, context = detector.memory_of(name), detector.text_contexts([name])
    scores = detector.scores(batch.images_B3HW, text_BD2, memory=memory, context=context)
    for known in (True, False):
        rows = torch.nonzero(batch.masks_known_B == known)[:, 0]
        if len(rows):
            own = scores.select(rows)
            relative.add(own)
            maps_BSS, masks = (own.maps_BSS.cpu(), batch.masks_BHW[rows]) if known else (None, None)
            names = [batch.names[row] for row in rows.tolist()]
            metrics.update(own.logits_B.cpu(), batch.anomalous_B[rows], maps_BSS, masks, names_B=names)
