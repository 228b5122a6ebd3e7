"""A detector as a folder: the trained weights, class embeddings, score, threshold and memories, without the CLIP.

config.json          marker: package, format; configuration, fingerprints of the CLIP, score, border, threshold
model.safetensors    trained weights, and the embedding of each class
memory.safetensors   remembered normal images, in half precision
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from aaclip.config import Config
from aaclip.detector.calibration import Logistic, Threshold
from aaclip.detector.memory import Level, Memory
from aaclip.models import AnomalyModel
from clip_common.config import load_config
from clip_common.runs.opening import MARKER, find_model, read_marker, write_marker
from clip_common.tensors import TensorsError, check_fit, read_metadata, read_tensors, write_tensors

PACKAGE, FORMAT = "aaclip", 3
WEIGHTS, MEMORY = "model.safetensors", "memory.safetensors"
OLDER = ("detector.json",)
"""Marker of the formats 1 and 2."""


@dataclass(frozen=True)
class Stored:
    """What a folder holds of a detector.

    Attributes:
        config: Of its training.
        state: Trained weights by name (`trained_state`).
        fingerprints: Of the backbone's `image` and `text` tower.
        classes: Embedding (D, 2) of each class, by what the thing is called.
        score: From classification and map to one number.
        border: Logit difference of a map from which a pixel counts as part of a defect.
        threshold: Of the score; None: no verdicts.
        memories: Remembered normal images, by what they show.
    """

    config: Config
    state: Mapping[str, Tensor]
    fingerprints: Mapping[str, str]
    classes: Mapping[str, Tensor]
    score: Logistic
    border: float
    threshold: Threshold | None
    memories: Mapping[str, Memory]


def write_detector(folder: Path, stored: Stored) -> None:
    """Write a detector's files, the marker last."""
    names = sorted(stored.classes)
    embeddings = {f"classes.{row}": stored.classes[name] for row, name in enumerate(names)}
    write_tensors(folder / WEIGHTS, {**stored.state, **embeddings})
    _write_memories(folder / MEMORY, stored.memories)
    content = {
        "config": asdict(stored.config),
        "fingerprints": dict(stored.fingerprints),
        "classes": names,
        "score": stored.score.to_dict(),
        "border": stored.border,
        "threshold": None if stored.threshold is None else stored.threshold.to_dict(),
    }
    write_marker(folder, content, package=PACKAGE, format=FORMAT)


def read_detector(source: Path) -> Stored:
    """Read a detector from a run folder, or from a folder that `write_detector` wrote.

    Raises:
        ValueError: One line: neither of the two, a run without a model yet, an older format, or damaged files.
    """
    folder = find_detector(source)
    content = read_marker(folder, package=PACKAGE, format=FORMAT)
    state = read_tensors(folder / WEIGHTS)
    rows = {name: f"classes.{row}" for row, name in enumerate(content["classes"])}
    if not state.keys() >= set(rows.values()):
        raise TensorsError(f"{folder / WEIGHTS} belongs to another detector than {MARKER} beside it: copy both again")
    return Stored(
        config=load_config(Config, config=content["config"]),
        classes={name: state.pop(key) for name, key in rows.items()},
        state=state,
        fingerprints=content["fingerprints"],
        score=Logistic.from_dict(content["score"]),
        border=float(content["border"]),
        threshold=None if content["threshold"] is None else Threshold.from_dict(content["threshold"]),
        memories=_read_memories(folder / MEMORY),
    )


def find_detector(source: Path) -> Path:
    """Return the folder of a saved detector: that of a run's model, or `source` itself.

    Raises:
        ValueError: See `clip_common.runs.opening.find_model`.
    """
    return find_model(source, package=PACKAGE, format=FORMAT, older=OLDER)


def trained_state(model: AnomalyModel) -> dict[str, Tensor]:
    """Return the weights that the two stages train, by name."""
    kept = ("text_adapter.", "image_adapter.", "log_temperature", "level_logits")
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name.startswith(kept)}


def load_trained(model: AnomalyModel, state: Mapping[str, Tensor], *, source: Path) -> None:
    """Load what `trained_state` returned.

    Raises:
        ValueError: Weights of other adapters.
    """
    check_fit(trained_state(model), state, source=source, called="the adapters of this configuration")
    model.load_state_dict(dict(state), strict=False)


def save_threshold(source: Path, threshold: Threshold) -> None:
    """Write a saved detector's threshold; the weights stay as they are."""
    _update_marker(find_detector(source), threshold=threshold.to_dict())


def save_score(source: Path, score: Logistic, *, border: float) -> None:
    """Write a saved detector's image score and border of masks; its threshold is removed, because scores change."""
    _update_marker(find_detector(source), score=score.to_dict(), border=border, threshold=None)


def save_memories(source: Path, memories: Mapping[str, Memory]) -> None:
    """Write a saved detector's memories; its threshold is removed first, because scores change."""
    folder = find_detector(source)
    _update_marker(folder, threshold=None)
    _write_memories(folder / MEMORY, memories)


def _update_marker(folder: Path, **changes: Any) -> None:
    content = read_marker(folder, package=PACKAGE, format=FORMAT)
    write_marker(folder, content | changes, package=PACKAGE, format=FORMAT)


def _write_memories(file: Path, memories: Mapping[str, Memory]) -> None:
    names, state = sorted(memories), {}
    for row, name in enumerate(names):
        for number, level in enumerate(memories[name].levels):
            state[f"{row}.{number}.patches"] = level.patches_ND.half()
            state[f"{row}.{number}.usual"] = level.usual.float()
    about = json.dumps([[name, memories[name].images, len(memories[name].levels)] for name in names])
    write_tensors(file, state, metadata={"memories": about})


def _read_memories(file: Path) -> dict[str, Memory]:
    state, about = read_tensors(file), json.loads(read_metadata(file)["memories"])
    return {
        name: Memory(
            [
                Level(state[f"{row}.{number}.patches"].float(), state[f"{row}.{number}.usual"])
                for number in range(levels)
            ],
            images=images,
        )
        for row, (name, images, levels) in enumerate(about)
    }
