"""A detector and a labelled set, to numbers: every class in one pass, in constant memory.

B images of a batch, S pixels of the model's input.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from aaclip.data import AnomalyDataset, Batch, DataError, Record, collate, read_dataset
from aaclip.detector import Detector
from aaclip.experiment import TRAINING_LIST
from aaclip.metrics import ClassMetrics, mean_of
from clip_common.reporting import Progress


@dataclass(frozen=True)
class Evaluation:
    """What `aaclip test` prints and writes.

    Attributes:
        classes: By class, the value of each metric, 0 to 1; None where the class has not what it takes.
        intervals: By class, the 95 % bootstrap interval over images of each metric that exists.
        images: By class, how many images were scored.
    """

    classes: dict[str, dict[str, float | None]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    images: dict[str, int]

    @property
    def mean(self) -> dict[str, float | None]:
        """Each metric's mean over the classes that have it."""
        return {name: mean.value for name, mean in mean_of(self.classes).items()}


def evaluate(
    detector: Detector,
    records: Sequence[Record],
    *,
    batch_size: int = 8,
    workers: int = 0,
    samples: int = 1000,
    progress: Progress | None = None,
) -> Evaluation:
    """Score labelled images, class by class.

    Args:
        detector: Trained, or plain CLIP.
        records: Of any number of classes.
        batch_size: Images at a time; changes no score.
        workers: Loader processes.
        samples: Resamples of the intervals.
        progress: Called as `progress(done, total)`.

    Raises:
        ValueError: No images.
    """
    if not records:
        raise ValueError("there is no image to test on: give a set with a test split")
    of_class: dict[str, list[Record]] = {}
    for record in records:
        of_class.setdefault(record.class_name, []).append(record)
    classes, intervals, done = {}, {}, 0
    for name, own in sorted(of_class.items()):
        dataset = AnomalyDataset(own, preprocess=detector.preprocess, size=detector.size, seed=0)
        metrics = ClassMetrics()
        for batch in DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=collate):
            update(metrics, detector, batch, name=name)
            done += len(batch.names)
            if progress is not None:
                progress(done, len(records))
        classes[name] = metrics.compute()
        intervals[name] = metrics.intervals(samples=samples)
    return Evaluation(classes, intervals, {name: len(own) for name, own in of_class.items()})


def update(metrics: ClassMetrics, detector: Detector, batch: Batch, *, name: str) -> None:
    """Score a batch of one class; anomalous images without a mask count as images only."""
    text_BD2 = detector.class_embedding(name).expand(len(batch.names), -1, -1)
    scores = detector.scores(batch.images_B3HW, text_BD2)
    image_B, maps_BSS = detector.image_logits(scores), scores.maps_BSS.cpu()
    for known in (True, False):
        rows = torch.nonzero(batch.masks_known_B == known)[:, 0].numpy()
        if len(rows):
            masks = batch.masks_BHW[rows] if known else None
            metrics.update(image_B[rows], batch.anomalous_B[rows], maps_BSS[rows] if known else None, masks)


def records_to_test(root: Path, *, format: str = "auto", classes: Sequence[str] | None = None) -> list[Record]:
    """The test split of a set."""
    return read_dataset(root, format=format, classes=classes).of(split="test")


def refuse_training_images(run: Path, records: Sequence[Record]) -> None:
    """Raise where images that a run learned from are in a set that it is tested on.

    Raises:
        DataError: Says how many, and the first.
    """
    # a run's detector may be named by its own folder, RUN/model, too
    lists = [folder / TRAINING_LIST for folder in (run.resolve(), run.resolve().parent)] if run.is_dir() else []
    file = next((file for file in lists if file.exists()), None)
    if file is None:
        return
    learned = {row["sha256"] for row in json.loads(file.read_text(encoding="utf-8"))["records"]}
    known = [record.image for record in records if _sha256(record.image) in learned]
    if known:
        raise DataError(
            f"{len(known)} of {len(records)} images to test on are among those that {run} learned from, first "
            f"{known[0]}: test on another set"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
