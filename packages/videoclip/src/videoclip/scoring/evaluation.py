"""From predictions to metrics with intervals over subjects, and the comparison of two systems.

G subjects, K classes, S resamples, R runs; V clips have a map.
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
from videoclip.scoring.agreement import MEASURES
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
    """Metrics of a scored set.

    Attributes:
        metrics: By name, without the prefix `test/`; undefined metrics are absent.
        intervals: 95 % bootstrap intervals over subjects; empty for a single subject.
        confusion_KK: Counts of clips by true class (rows) and predicted class (columns).
        subject_confusion_KK: The same counts of subjects.
        majority: The class that the majority baseline always predicts.
        clips, labelled, mapped: Number of clips, of clips with a label, and of clips with a map.
        subjects: Number of subjects.
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
        """Return plain numbers and lists, for result.json."""
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
    """Compute the metrics of a scored set.

    `accuracy`, `balanced_accuracy`, `macro_f1` and `recall_0`, … count clips; `subject_…` count subjects, by the mean
    probability over their clips; `majority_…` and `majority_subject_…` are those of always predicting the most
    frequent training class. `retrieval_…` and `align_sim_…` are as in `videoclip.scoring.metrics`; `map_corr`,
    `map_iou` and `map_pointing` are the agreement of the map that the model makes with the clip's, `centre_…` that of
    a Gaussian in the centre (`videoclip.scoring.agreement`). Clips without a label do not count for classification.

    Args:
        predictions: Predictions of one model.
        train_labels: Labels of the training clips; -1 is unknown.
        classes: K.
        samples: Number of resamples for the intervals.
        seed: Seed of the resamples.

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
        metrics |= compute_chance(predictions.map_N[predictions.valid_N], predictions.regions_N[predictions.valid_N])
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
    """Compare two systems on the same clips by resampling subjects, the same ones for both.

    Systems trained several times are compared over subjects and runs (see `resample_runs`). Resamples for which the
    metric is undefined in one system are dropped.

    Args:
        ours: One system: its predictions, or those of several runs.
        theirs: The other system, on the same clips in the same order; run i of both is a pair.
        key: Name of a metric in `Evaluation.intervals`.
        samples: Number of resamples.
        seed: Seed of the resamples.

    Raises:
        ValueError: Different clips, a metric that one of them lacks, different numbers of runs, or fewer than two
            subjects.
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
    known = set.intersection(*(set(metrics) for side in whole for metrics in side))
    if key not in known:
        raise ValueError(f"no metric {key!r} of both systems; known: {', '.join(sorted(known))}")
    resampled_2RS = np.array([[one.resampled(samples=samples, seed=seed)[key] for one in side] for side in scored])
    difference_RS = resampled_2RS[0] - resampled_2RS[1]
    observed_R = [mine[key] - other[key] for mine, other in zip(*whole, strict=True)]
    return paired_difference(observed_R, difference_RS[:, np.isfinite(difference_RS).all(axis=0)], seed=seed)


class _Resampled:
    """Metrics of predictions for any weights of their subjects."""

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
                predictions.video_embed_ND[valid_N],
                predictions.attn_embed_ND[valid_N],
                map_N=predictions.map_N[valid_N],
                regions_N=predictions.regions_N[valid_N],
            )
            if self.retrieves
            else {}
        )

    def confusions(self, weights_SG: NDArray[Any]) -> tuple[Floats, Floats]:
        """Return the confusion of clips and of subjects, (S, K, K) each."""
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
        """Return each metric that has an interval, (S,); NaN if undefined."""
        predictions = self.predictions
        of_clips_SKK, of_subjects_SKK = self.confusions(weights_SG)
        metrics = score_confusion(of_clips_SKK)
        metrics |= {f"subject_{name}": values_S for name, values_S in score_confusion(of_subjects_SKK).items()}
        weights_SV = weights_SG[:, self.subject_N[predictions.valid_N]]
        for name, hits_V in self.hits.items():
            metrics[name] = divide(weights_SV @ hits_V, weights_SV.sum(1))
        for prefix, measured_N3 in (("map", predictions.agreement_N3), ("centre", predictions.centre_N3)):
            for name, values_N in zip(MEASURES, measured_N3.T, strict=True):
                known_N = np.isfinite(values_N)
                weights_SK = weights_SG[:, self.subject_N[known_N]]
                metrics[f"{prefix}_{name}"] = divide(weights_SK @ values_N[known_N], weights_SK.sum(1))
        judged_N = predictions.judged_N
        if judged_N.any():
            metrics |= score_alignment(
                predictions.similarity_N[judged_N],
                predictions.predicted_N[judged_N] == predictions.label_N[judged_N],
                weights_SG[:, self.subject_N[judged_N]],
            )
        return metrics

    def resampled(self, *, samples: int, seed: int) -> dict[str, Floats]:
        """Return each metric on resamples of the subjects, (S,); the clips of a subject are drawn together."""
        width = max(len(self.predictions), self.classes**2)
        chunks = draw_resamples(self.subjects, samples=samples, seed=seed, width=4 * width)
        return concatenate_chunks(self.measure(counts_SG) for counts_SG in chunks)
