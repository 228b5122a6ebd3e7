"""Fit the image score and the border of masks on labelled images: at the end of training, and of saved detectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from aaclip.data import AnomalyDataset, Record, collate, read_dataset
from aaclip.data.records import group_by_class
from aaclip.data.unreadable import Attempts, Unreadable, all_unreadable
from aaclip.detector.calibration import Logistic
from aaclip.detector.detector import Detector
from aaclip.detector.files import save_score
from clip_common.errors import printable
from clip_common.metrics import StreamingCurve
from clip_common.reporting import Progress, Reporter, silent


@dataclass(frozen=True)
class Fitted:
    """Result of `fit_saved`.

    Attributes:
        score: As it was written beside the weights.
        border: The same.
        split: Of the images: `training`, or `all` if the set's training split lacks one of the labels.
        images: Images that were given.
        failures: File → what is wrong with it; the fit is from the others.
        threshold_cleared: The detector had a threshold, which the new score made meaningless.
    """

    score: Logistic
    border: float
    split: str
    images: int
    failures: dict[str, str]
    threshold_cleared: bool


def note_unfitted(source: str | Path, score: Logistic) -> list[str]:
    """Return a line about a saved detector whose score was never fitted; nothing for plain CLIP, which is not saved."""
    if score.images or not Path(source).is_dir():
        return []
    return [
        "not fitted yet: the score of a single image and the border of masks; "
        f"aaclip fit-score {printable(source)} SET fits them on labelled images"
    ]


def fit_saved(source: Path, root: Path, *, format: str = "auto", reporter: Reporter = silent) -> Fitted:
    """Fit a saved detector's image score and border of masks on a labelled set, and write them beside the weights.

    The set's training split is used if it has normal and anomalous images, else all of the set: a test on that set is
    then no test on unseen images. The threshold is removed, because scores change.

    Args:
        source: A run folder or a saved detector.
        root: The set's folder.
        format: `auto`, or one of `aaclip.data.FORMATS`.
        reporter: Shows progress.

    Raises:
        ValueError: No image that can be read, only normal or only anomalous images, or neither input of the score is
            higher for anomalous images; the detector stays unchanged.
    """
    dataset = read_dataset(root, format=format)
    records, split = dataset.of(split="train"), "training"
    if len({record.anomalous for record in records}) < 2:
        records, split = dataset.records, "all"
    detector = Detector.from_pretrained(source)
    with reporter(f"scoring {len(records):,} images") as progress:
        failures = fit_scores(detector, records, progress=progress)
    save_score(source, detector.score, border=detector.border)
    return Fitted(detector.score, detector.border, split, len(records), failures, detector.threshold is not None)


def fit_scores(detector: Detector, records: Sequence[Record], *, progress: Progress | None = None) -> dict[str, str]:
    """Fit a detector's image score, and its border of masks: the pixel threshold of best F1. Nothing is augmented.

    Without masks the border stays unchanged.

    Args:
        detector: Gets both.
        records: Labelled images, normal and anomalous ones. Unreadable ones are left out.
        progress: Called as `progress(done, total)`.

    Returns:
        Image that was left out → what is wrong with it or with its mask.

    Raises:
        ValueError: No image that can be read; or see `Logistic.fit`: the border is fitted all the same.
    """
    columns: list[list[NDArray[Any]]] = [[], [], []]
    pixels, marked, done, failures = StreamingCurve(), False, 0, dict[str, str]()
    for name, own in sorted(group_by_class(records).items()):
        dataset = AnomalyDataset(own, preprocess=detector.preprocess, size=detector.size, seed=0)
        text_D2, memory = detector.class_embedding(name), detector.memory_of(name)
        context = detector.text_contexts([name])
        for attempts in DataLoader(Attempts(dataset), batch_size=16, collate_fn=list):
            failures.update((one.file, one.problem) for one in attempts if isinstance(one, Unreadable))
            if samples := [one for one in attempts if not isinstance(one, Unreadable)]:
                batch = collate(samples)
                text_BD2 = text_D2.expand(len(samples), -1, -1)
                scores = detector.scores(batch.images_B3HW, text_BD2, memory=memory, context=context)
                known_B = batch.masks_known_B
                pixels.update(scores.maps_BSS.cpu()[known_B], batch.masks_BHW[known_B])
                marked = marked or bool(batch.masks_BHW.any())
                values = (scores.classification_B, scores.top_B, batch.anomalous_B)
                for column, values_B in zip(columns, values, strict=True):
                    column.append(values_B.cpu().numpy())
            done += len(attempts)
            if progress is not None:
                progress(done, len(records))
    if not columns[0]:
        raise all_unreadable(failures)
    if marked:
        detector.border = pixels.compute().threshold
    classification, top, anomalous = (np.concatenate(column) for column in columns)
    detector.score = Logistic.fit(classification, top, anomalous)
    return failures
