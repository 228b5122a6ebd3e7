"""A detector as a folder: the trained weights, class embeddings, score, threshold and memories, without the CLIP.

config.json          marker: package, format; configuration, fingerprints of the CLIP, score, border, threshold
model.safetensors    trained weights, and the embedding of each class
memory.safetensors   remembered normal images, in half precision
contexts.safetensors with cross-attention alone: what prompts and images attend to, in half precision

A feedback run has a detector of each loop too, in one file: `loop_2_final.safetensors`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from aaclip.config import Config
from aaclip.detector.calibration import Logistic, Threshold
from aaclip.detector.memory import Level, Memory
from aaclip.models import AnomalyModel
from aaclip.models.contexts import Contexts
from clip_common.config import load_config
from clip_common.runs import Run
from clip_common.runs.folder import is_run
from clip_common.runs.opening import MARKER, find_model, make_marker, read_marker, write_marker
from clip_common.tensors import TensorsError, check_fit, read_metadata, read_tensors, write_tensors

PACKAGE, FORMAT = "aaclip", 5
WEIGHTS, MEMORY, CONTEXTS = "model.safetensors", "memory.safetensors", "contexts.safetensors"
CROSS = ("text_cross_attn.", "image_cross_attn.")
LOOP = re.compile(r"loop_(\d+)_final\.safetensors")
OLDER = ("detector.json",)
"""Marker of the formats 1 and 2."""
TEXT = "text_adapter."
"""Prefix of the weights that stage 1 trains."""


@dataclass(frozen=True)
class Stored:
    """What a folder holds of a detector.

    Attributes:
        config: Of its training.
        state: Trained weights by name (`trained_state`).
        fingerprints: Of the backbone's `image` and `text` tower.
        activation: As the backbone ran, which no fingerprint of weights knows.
        classes: Embedding (D, 2) of each class, by `normalise_class`.
        score: From classification and map to one number.
        border: Logit difference of a map from which a pixel counts as part of a defect.
        threshold: Of the score; None: no verdicts.
        memories: Remembered normal images, by class.
        contexts: What prompts and images attend to; None if no test uses cross-attention.
    """

    config: Config
    state: Mapping[str, Tensor]
    fingerprints: Mapping[str, str]
    activation: str | None
    classes: Mapping[str, Tensor]
    score: Logistic
    border: float
    threshold: Threshold | None
    memories: Mapping[str, Memory]
    contexts: Contexts | None = None


def write_detector(folder: Path, stored: Stored) -> None:
    """Write a detector's files, the marker last; or one file, without memories, if `folder` is named as a loop's."""
    if LOOP.fullmatch(folder.name):
        _write_loop(folder, stored)
        return
    write_tensors(folder / WEIGHTS, {**stored.state, **_embeddings(stored)})
    _write_memories(folder / MEMORY, stored.memories)
    if stored.contexts is not None:
        _write_contexts(folder / CONTEXTS, stored.contexts)
    write_marker(folder, _describe(stored), package=PACKAGE, format=FORMAT)


def _embeddings(stored: Stored) -> dict[str, Tensor]:
    return {f"classes.{row}": stored.classes[name] for row, name in enumerate(sorted(stored.classes))}


def _describe(stored: Stored) -> dict[str, Any]:
    return {
        "config": asdict(stored.config),
        "fingerprints": dict(stored.fingerprints),
        "activation": stored.activation,
        "classes": sorted(stored.classes),
        "score": stored.score.to_dict(),
        "border": stored.border,
        "threshold": None if stored.threshold is None else stored.threshold.to_dict(),
    }


def read_detector(source: Path) -> Stored:
    """Read a detector from a run folder, a folder that `write_detector` wrote, or a loop's file.

    Raises:
        ValueError: One line: none of the three, a run without a model yet, an older format, or damaged files.
    """
    if is_loop_file(source):
        return _read_loop(source)
    folder = find_detector(source)
    content = read_marker(folder, package=PACKAGE, format=FORMAT)
    state = read_tensors(folder / WEIGHTS)
    config = load_config(Config, config=content["config"])
    attends = config.cross_attention.enabled and config.cross_attention.at_test
    contexts = _read_contexts(folder / CONTEXTS, content["classes"]) if attends else None
    return _restore(
        content, state, source=folder / WEIGHTS, memories=_read_memories(folder / MEMORY), contexts=contexts
    )


def _restore(
    content: Mapping[str, Any],
    state: dict[str, Tensor],
    *,
    source: Path,
    memories: Mapping[str, Memory],
    contexts: Contexts | None,
) -> Stored:
    rows = {name: f"classes.{row}" for row, name in enumerate(content["classes"])}
    if not state.keys() >= set(rows.values()):
        raise TensorsError(f"{source} belongs to another detector than {MARKER} beside it: copy both again")
    return Stored(
        config=load_config(Config, config=content["config"]),
        classes={name: state.pop(key) for name, key in rows.items()},
        state=state,
        fingerprints=content["fingerprints"],
        activation=content["activation"],
        score=Logistic.from_dict(content["score"]),
        border=float(content["border"]),
        threshold=None if content["threshold"] is None else Threshold.from_dict(content["threshold"]),
        memories=memories,
        contexts=contexts,
    )


def name_loop(loop: int) -> str:
    """Return the name of the file of a loop, counted from 1."""
    return f"loop_{loop}_final.safetensors"


def is_loop_file(source: Path) -> bool:
    """Return whether a path is the file of a loop."""
    return LOOP.fullmatch(source.name) is not None and source.is_file()


def is_saved(source: str | Path) -> bool:
    """Return whether a name is a folder or the file of a loop, not the name of a CLIP."""
    return Path(source).is_dir() or is_loop_file(Path(source))


def list_loops(run: Path) -> dict[int, Path]:
    """Return the file of each loop in a run's folder, in the order of the loops; empty for other runs."""
    found = [(LOOP.fullmatch(file.name), file) for file in run.iterdir()] if run.is_dir() else []
    return dict(sorted((int(name[1]), file) for name, file in found if name))


def _write_loop(file: Path, stored: Stored) -> None:
    tensors, names = ({}, None) if stored.contexts is None else _pack_contexts(stored.contexts, prefix="contexts.")
    content = make_marker(_describe(stored) | {"contexts": names}, package=PACKAGE, format=FORMAT)
    write_tensors(file, {**stored.state, **_embeddings(stored), **tensors}, metadata={PACKAGE: json.dumps(content)})


def _read_loop(file: Path) -> Stored:
    state, metadata = read_tensors(file), read_metadata(file)
    content = json.loads(metadata.get(PACKAGE, "{}"))
    if content.get("format") != FORMAT:
        raise TensorsError(f"{file} is no loop of a feedback run that this version of {PACKAGE} wrote: train it again")
    contexts = None
    if content["contexts"] is not None:
        contexts = _unpack_contexts(state, content["contexts"], prefix="contexts.")
    return _restore(content, state, source=file, memories={}, contexts=contexts)


def find_detector(source: Path) -> Path:
    """Return the folder of a saved detector: that of a run's model, or `source` itself.

    Raises:
        ValueError: See `clip_common.runs.opening.find_model`.
    """
    verb = Run.open(source).verb if is_run(source) else "train"
    verb = verb if verb == "feedback" else "train"  # the two that leave a model
    return find_model(source, package=PACKAGE, format=FORMAT, older=OLDER, verb=verb)


def trained_state(model: AnomalyModel) -> dict[str, Tensor]:
    """Return the weights that the two stages train, by name."""
    kept = ("text_adapter.", "image_adapter.", *CROSS, "log_temperature", "level_logits")
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name.startswith(kept)}


def load_trained(model: AnomalyModel, state: Mapping[str, Tensor], *, source: Path, start: bool = False) -> None:
    """Load what `trained_state` returned.

    Weights without cross-attention load into a model with it if that changes nothing: weight 0, or a closed gate.

    Args:
        model: Filled in place.
        state: By name.
        source: Where they came from, for messages.
        start: A training starts from them: modules for cross-attention that they lack stay untrained.

    Raises:
        ValueError: Weights of other adapters, of cross-attention where the model has none, or of the text stage alone.
    """
    own = trained_state(model)
    if not any(name.startswith("image_adapter.") for name in state):
        if not start:
            raise TensorsError(
                f"{source} holds the text adapters alone: train the image stage against them with aaclip train "
                f"stages.text.epochs=0 start={source} data.root=SET"
            )
        own = {name: tensor for name, tensor in own.items() if name.startswith(TEXT)}
    modules = [one for one in (model.text_cross_attn, model.image_cross_attn) if one is not None]
    attended = any(name.startswith(CROSS) for name in state)
    if attended and not modules:
        raise TensorsError(
            f"{source} was trained with cross-attention, which this configuration leaves out: set "
            "cross_attention.enabled=true"
        )
    if modules and not attended:
        if not (start or all(one.is_no_op for one in modules)):
            raise TensorsError(
                f"{source} was trained without cross-attention, which this configuration adds: train it on with "
                f"start={source}, or set cross_attention.enabled=false"
            )
        own = {name: tensor for name, tensor in own.items() if not name.startswith(CROSS)}
    check_fit(own, state, source=source, called="the adapters of this configuration")
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


def _pack_contexts(contexts: Contexts, *, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Return contexts as tensors of half precision by kind and row, and the class of each row."""
    kinds = {"image": contexts.image, "text": contexts.text}
    names = {kind: sorted(own) for kind, own in kinds.items()}
    tensors = {
        f"{prefix}{kind}.{row}": kinds[kind][name].half() for kind in names for row, name in enumerate(names[kind])
    }
    return tensors, names


def _unpack_contexts(state: dict[str, Tensor], names: Mapping[str, Sequence[str]], *, prefix: str = "") -> Contexts:
    """Take what `_pack_contexts` returned out of `state`."""
    kinds = (
        {name: state.pop(f"{prefix}{kind}.{row}").float() for row, name in enumerate(names[kind])}
        for kind in ("image", "text")
    )
    return Contexts(*kinds)


def _write_contexts(file: Path, contexts: Contexts) -> None:
    state, names = _pack_contexts(contexts)
    write_tensors(file, state, metadata={"contexts": json.dumps(names)})


def _read_contexts(file: Path, classes: Sequence[str]) -> Contexts:
    """Read what `_write_contexts` wrote.

    Raises:
        ValueError: No file, no context of any class, or a class of the detector without one.
    """
    if not file.exists():
        raise TensorsError(
            f"{file.parent} holds no context of any class, which its cross-attention needs: copy {file.name} too, or "
            "train it again"
        )
    contexts = _unpack_contexts(read_tensors(file), json.loads(read_metadata(file)["contexts"]))
    if not contexts.image or (lacking := sorted(set(classes) - contexts.text.keys())):
        what = f"no context of {lacking[0]!r}" if contexts.image else "no image context of any class"
        raise TensorsError(f"{file} holds {what}, which cross-attention needs: copy the detector's folder again")
    return contexts
