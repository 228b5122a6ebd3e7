"""Predictions to numbers, with intervals over subjects, and two systems compared.

G subjects, K classes, S resamples, R runs; of the clips V have a map.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_common.errors import DataError
from clip_common.metrics import Paired
from clip_common.metrics.bootstrap import (
    concatenate_chunks,
    draw_resamples,
    paired_difference,
    percentile_intervals,
)
from videoclip.scoring.metrics import (
    Floats,
    Ints,
    average_by_subject,
    compute_chance,
    count_confusion,
    divide,
    find_majority,
    keep_finite,
    name_recalls,
    score_alignment,
    score_confusion,
    score_retrieval,
)
from videoclip.scoring.predictions import Predictions


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `videoclip test` prints, draws and writes.

    Attributes:
        metrics: By name as in the description, without `test/`; a figure that does not exist is not in it.
        intervals: The 95 % bootstrap interval over subjects; none where there are fewer than two.
        confusion_KK: Clips of each class (rows) that were taken for each class (columns).
        subject_confusion_KK: The same of subjects.
        majority: The class that the majority baseline always says.
        clips, labelled, mapped: How many clips there are, how many with a label, how many with a map.
        subjects: How many there are.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confusion_KK: Ints
    subject_confusion_KK: Ints
    majority: int
    clips: int
    labelled: int
    mapped: int
    subjects: int

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {
            "metrics": self.metrics,
            "intervals_95": {name: list(bounds) for name, bounds in self.intervals.items()},
            "confusion": self.confusion_KK.tolist(),
            "subject_confusion": self.subject_confusion_KK.tolist(),
            "majority_class": self.majority,
            "clips": self.clips,
            "labelled_clips": self.labelled,
            "clips_with_map": self.mapped,
            "subjects": self.subjects,
        }


def evaluate(
    predictions: Predictions, *, train_labels: Iterable[int], classes: int, samples: int = 1000, seed: int = 0
) -> Evaluation:
    """Numbers of a scored set.

    `accuracy`, `balanced_accuracy`, `macro_f1` and `recall_0`, … count clips; `subject_…` count subjects, by the mean
    probability over their clips; `majority_…` and `majority_subject_…` are those of always saying the most frequent
    training class. `retrieval_…` and `align_sim_…` are as in `videoclip.scoring.metrics`. Clips without a label count
    for retrieval alone.

    Args:
        predictions: Of one model.
        train_labels: Of the training clips; -1 is unknown.
        classes: K.
        samples: Resamples of the intervals.
        seed: Of their draw.

    Raises:
        DataError: No training label, or a label beyond the classes.
        ValueError: Logits that are not finite.
    """
    if not np.isfinite(predictions.logits_NK).all():
        bad = int((~np.isfinite(predictions.logits_NK)).any(axis=1).sum())
        raise ValueError(f"the logits of {bad} of {len(predictions)} clips are NaN or infinite: the model has diverged")
    assert predictions.logits_NK.shape[1] == classes
    if predictions.label_N.max() >= classes:
        first = int(np.argmax(predictions.label_N >= classes))
        raise DataError(
            f"clip {predictions.clip_ids[first]} has the label {predictions.label_N[first]}, but there are {classes} "
            f"classes, 0 to {classes - 1}: set model.model_class_num or correct the label"
        )
    scored = _Resampled(predictions, classes=classes)
    once_1G = np.ones((1, scored.subjects))
    clip_KK, subject_KK = (table_SKK[0] for table_SKK in scored.confusions(once_1G))
    metrics = keep_finite(scored.measure(once_1G))
    metrics |= keep_finite(name_recalls(clip_KK[None]))
    common = find_majority(train_labels)
    for level, table_KK in (("", clip_KK), ("subject_", subject_KK)):
        always_KK = np.zeros_like(table_KK)
        always_KK[:, common] = table_KK.sum(1)
        metrics |= keep_finite({f"majority_{level}{name}": v for name, v in score_confusion(always_KK[None]).items()})
    if scored.retrieves:
        metrics |= compute_chance(predictions.map_N[predictions.valid_N])
    intervals = {}
    if scored.subjects > 1:
        drawn = scored.resampled(samples=samples, seed=seed)
        intervals = percentile_intervals(
            {name: drawn[name][np.isfinite(drawn[name])] for name in drawn if name in metrics}
        )
    return Evaluation(
        metrics=metrics,
        intervals=intervals,
        confusion_KK=clip_KK.astype(np.int64),
        subject_confusion_KK=subject_KK.astype(np.int64),
        majority=common,
        clips=len(predictions),
        labelled=int((predictions.label_N >= 0).sum()),
        mapped=int(predictions.valid_N.sum()),
        subjects=scored.subjects,
    )


def paired_bootstrap(
    ours: Predictions | Sequence[Predictions],
    theirs: Predictions | Sequence[Predictions],
    *,
    key: str = "macro_f1",
    samples: int = 2000,
    seed: int = 0,
) -> Paired:
    """How far one system is ahead of another on the same clips: subjects are resampled, for both systems alike.

    Systems trained several times are compared over subjects and over runs (see `resample_runs`).
    A resample in which the figure does not exist for one of them is left out.

    Args:
        ours: One system: predictions, or those of several runs.
        theirs: The other, on the same clips in the same order; run i of both belongs together.
        key: Of `Evaluation.intervals`.
        samples: Resamples drawn.
        seed: Of the draw.

    Raises:
        ValueError: Other clips, no such figure in both, not as many runs, fewer than two subjects.
    """
    sides = [[side] if isinstance(side, Predictions) else list(side) for side in (ours, theirs)]
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        raise ValueError(
            f"a paired bootstrap pairs run by run; got {len(sides[0])} and {len(sides[1])} runs: give as many of both"
        )
    first = sides[0][0]
    scored = [[_Resampled(one, classes=one.logits_NK.shape[1]) for one in side] for side in sides]
    for one in (one for side in sides for one in side):
        same = all(np.array_equal(getattr(first, name), getattr(one, name)) for name in ("label_N", "subject_N"))
        if not same or first.clip_ids != one.clip_ids:
            raise ValueError(
                f"a paired bootstrap needs predictions of the same clips in the same order; got {len(first)} and "
                f"{len(one)} clips that differ: test both systems on the same split"
            )
    subjects = scored[0][0].subjects
    if subjects < 2:
        raise ValueError(f"a bootstrap over subjects needs at least 2; got {subjects}: test on more")
    once_1G = np.ones((1, subjects))
    whole = [[keep_finite(one.measure(once_1G)) for one in side] for side in scored]
    known = set.intersection(*(set(found) for side in whole for found in side))
    if key not in known:
        raise ValueError(f"no figure {key!r} of both systems; known: {', '.join(sorted(known))}")
    resampled_2RS = np.array([[one.resampled(samples=samples, seed=seed)[key] for one in side] for side in scored])
    difference_RS = resampled_2RS[0] - resampled_2RS[1]
    observed_R = [mine[key] - other[key] for mine, other in zip(*whole, strict=True)]
    return paired_difference(observed_R, difference_RS[:, np.isfinite(difference_RS).all(axis=0)], seed=seed)


class _Resampled:
    """Predictions, ready to be measured with any weights of their subjects."""

    def __init__(self, predictions: Predictions, *, classes: int) -> None:
        self.predictions, self.classes = predictions, classes
        names_G, self.subject_N = np.unique(predictions.subject_N, return_inverse=True)
        self.subjects = len(names_G)
        self.labelled_N = predictions.label_N >= 0
        self.by_subject = average_by_subject(
            predictions.probability_NK[self.labelled_N],
            predictions.label_N[self.labelled_N],
            self.subject_N[self.labelled_N],
        )
        valid_N = predictions.valid_N
        self.retrieves = int(valid_N.sum()) > 1
        self.hits = (
            score_retrieval(
                predictions.video_embed_ND[valid_N], predictions.attn_embed_ND[valid_N], predictions.map_N[valid_N]
            )
            if self.retrieves
            else {}
        )

    def confusions(self, weights_SG: NDArray[Any]) -> tuple[Floats, Floats]:
        """(S, K, K) of clips, and of subjects."""
        labelled_N, predictions, subjects = self.labelled_N, self.predictions, self.by_subject
        of_clips_SKK = count_confusion(
            predictions.label_N[labelled_N],
            predictions.predicted_N[labelled_N],
            weights_SG[:, self.subject_N[labelled_N]],
            classes=self.classes,
        )
        of_subjects_SKK = count_confusion(
            subjects.label_M,
            subjects.probability_MK.argmax(axis=1),
            weights_SG[:, subjects.subject_M],
            classes=self.classes,
        )
        return of_clips_SKK, of_subjects_SKK

    def measure(self, weights_SG: NDArray[Any]) -> dict[str, Floats]:
        """(S,) of each figure that has an interval; NaN where it does not exist."""
        predictions = self.predictions
        of_clips_SKK, of_subjects_SKK = self.confusions(weights_SG)
        found = score_confusion(of_clips_SKK)
        found |= {f"subject_{name}": values_S for name, values_S in score_confusion(of_subjects_SKK).items()}
        weights_SV = weights_SG[:, self.subject_N[predictions.valid_N]]
        for name, hits_V in self.hits.items():
            found[name] = divide(weights_SV @ hits_V, weights_SV.sum(1))
        judged_N = predictions.judged_N
        if judged_N.any():
            found |= score_alignment(
                predictions.similarity_N[judged_N],
                predictions.predicted_N[judged_N] == predictions.label_N[judged_N],
                weights_SG[:, self.subject_N[judged_N]],
            )
        return found

    def resampled(self, *, samples: int, seed: int) -> dict[str, Floats]:
        """(S,) of each figure on resamples of the subjects, the clips of one drawn together."""
        width = max(len(self.predictions), self.classes**2)
        chunks = draw_resamples(self.subjects, samples=samples, seed=seed, width=4 * width)
        return concatenate_chunks(self.measure(counts_SG) for counts_SG in chunks)
