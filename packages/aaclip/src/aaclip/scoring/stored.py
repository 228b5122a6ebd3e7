"""Scores of a detector on a set, kept in a file so that a comparison can be repeated or extended.

A file belongs to a key: a hash of everything that its scores depend on.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aaclip import __version__
from aaclip.data import Record
from aaclip.data.selection import hash_file
from aaclip.data.unreadable import Unreadable, attempt
from aaclip.detector.detector import Detector
from aaclip.detector.files import find_detector, is_saved, read_detector
from aaclip.models.prompts import load_prompts
from aaclip.scoring.bootstrap import ClassScores
from aaclip.scoring.evaluation import Evaluation
from aaclip.scoring.sketches import ImageSketch
from clip_common import images
from clip_common.runs import write_atomically

VERSION = 1
"""Of the files and of the code that scores; raise it when either changes."""


def hash_scoring(source: str | Path, records: Sequence[Record]) -> str:
    """Return a hash of everything that the scores of a detector on a set depend on.

    These are the files of the detector (or the weights and configuration of a plain CLIP), the prompts, the content,
    label and class of each image and its mask, the versions of aaclip and torch, and the kind of device.

    Args:
        source: A run, a saved detector, a loop's file, or the name of a CLIP.
        records: The images.
    """
    if is_saved(source):
        saved = Path(source)
        files = [saved] if saved.is_file() else [file for file in find_detector(saved).iterdir() if file.is_file()]
        detector: Any = {file.name: hash_file(file) for file in sorted(files)}
        prompts = load_prompts(read_detector(saved).config.prompts)
    else:
        plain = Detector.open(source)
        activation = plain.model.bundle.spec.activation  # `activation=null` leaves it to the files of the CLIP
        detector, prompts = [asdict(plain.config), plain.fingerprints, activation], plain.prompts
    content = {
        "versions": [VERSION, __version__, torch.__version__, images.VERSION, torch.cuda.is_available()],
        "detector": detector,
        "prompts": asdict(prompts),
        "records": [
            [record.class_name, record.anomalous, str(record.image), _digest(record.image), _digest(record.mask)]
            for record in records
        ],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _digest(file: Path | None) -> str | None:
    """Return the sha256 of a file; None if there is none, or it cannot be read."""
    digest = None if file is None else attempt(hash_file, file, file=file)
    return None if isinstance(digest, Unreadable) else digest


def save_scores(file: Path, evaluation: Evaluation) -> None:
    """Write the scores of an evaluation as .npz, whole or not at all."""
    about: dict[str, Any] = {"failures": evaluation.failures, "classes": []}
    arrays: dict[str, Any] = {}
    for number, (name, scores) in enumerate(evaluation.scores.items()):
        about["classes"].append({"name": name, "values": dict(scores.values), "names": scores.names})
        arrays |= {f"{number}.scores": scores.scores_N, f"{number}.anomalous": scores.anomalous_N}
        if scores.sketches:
            arrays |= {
                f"{number}.sketch_anomalous": np.array([sketch.anomalous for sketch in scores.sketches]),
                f"{number}.sketch_points": np.array([len(sketch.scores_K) for sketch in scores.sketches]),
                f"{number}.sketch_scores": np.concatenate([sketch.scores_K for sketch in scores.sketches]),
                f"{number}.sketch_mass": np.concatenate([sketch.mass_K3 for sketch in scores.sketches]),
            }
    with write_atomically(file) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, about=np.array(json.dumps(about)), **arrays)


def load_scores(file: Path) -> Evaluation:
    """Read what `save_scores` wrote, without intervals."""
    with np.load(file) as kept:
        about = json.loads(str(kept["about"]))
        found = Evaluation({}, {}, {}, failures=about["failures"])
        for number, of_class in enumerate(about["classes"]):
            own = {name.partition(".")[2]: kept[name] for name in kept.files if name.startswith(f"{number}.")}
            scores = found.scores[of_class["name"]] = ClassScores(
                values=of_class["values"],
                names=tuple(of_class["names"]),
                scores_N=own["scores"],
                anomalous_N=own["anomalous"],
                sketches=_read_sketches(own),
            )
            found.classes[of_class["name"]] = dict(scores.values)
            found.images[of_class["name"]] = len(scores.scores_N)
    return found


def _read_sketches(own: dict[str, Any]) -> tuple[ImageSketch, ...]:
    if "sketch_points" not in own:
        return ()
    stops = own["sketch_points"].cumsum()[:-1]
    parts = zip(np.split(own["sketch_scores"], stops), np.split(own["sketch_mass"], stops), strict=True)
    return tuple(
        ImageSketch(bool(anomalous), scores_K, mass_K3)
        for anomalous, (scores_K, mass_K3) in zip(own["sketch_anomalous"], parts, strict=True)
    )
