"""A detector as a folder: what was trained, what it is called, and what it decides by. The CLIP stays where it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from aaclip.detector.calibration import Threshold
from aaclip.detector.memory import Level, Memory
from aaclip.models import AnomalyModel
from clip_common.runs import Run, write_atomically, write_json

WEIGHTS, CONFIG, DETECTOR, MEMORY = "model.safetensors", "config.yaml", "detector.json", "memory.safetensors"


def trained_state(model: AnomalyModel) -> dict[str, Tensor]:
    """The state of what the two stages train."""
    kept = ("text_adapter.", "image_adapter.", "log_temperature", "level_logits")
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name.startswith(kept)}


def load_trained(model: AnomalyModel, state: Mapping[str, Tensor], *, source: Path) -> None:
    """The inverse of `trained_state`.

    Raises:
        ValueError: Weights of other adapters.
    """
    own = trained_state(model)
    wrong = sorted(own.keys() ^ state.keys()) or [key for key in own if own[key].shape != state[key].shape]
    if wrong:
        raise ValueError(f"{source}: {len(wrong)} weights are of other adapters than configured, such as {wrong[0]}")
    model.load_state_dict(dict(state), strict=False)


def write_tensors(file: Path, state: Mapping[str, Tensor]) -> None:
    """A safetensors file that is whole or not there."""
    with write_atomically(file) as temporary:
        save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, temporary, {"format": "pt"})


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The inverse of `write_tensors`.

    Raises:
        ValueError: A damaged file.
    """
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def write_memories(file: Path, memories: Mapping[str, Memory]) -> None:
    """All memories in one file, in half precision; what they are of stands in its header."""
    names, state = sorted(memories), {}
    for row, name in enumerate(names):
        for number, level in enumerate(memories[name].levels):
            state[f"{row}.{number}.patches"] = level.patches_ND.half().contiguous().cpu()
            state[f"{row}.{number}.usual"] = level.usual.float().cpu()
    about = json.dumps([[name, memories[name].images] for name in names])
    with write_atomically(file) as temporary:
        save_file(state, temporary, {"format": "pt", "memories": about})


def read_memories(file: Path, *, levels: int) -> dict[str, Memory]:
    """The inverse of `write_memories`; nothing where no file is.

    Raises:
        ValueError: A damaged file.
    """
    if not file.exists():
        return {}
    state = read_tensors(file)
    with safe_open(file, framework="pt") as stored:
        about = json.loads(stored.metadata()["memories"])
    return {
        name: Memory(
            [
                Level(state[f"{row}.{number}.patches"].float(), state[f"{row}.{number}.usual"])
                for number in range(levels)
            ],
            images=images,
        )
        for row, (name, images) in enumerate(about)
    }


def model_folder(source: Path) -> Path:
    """The folder of a run's model, or the folder itself where it holds one."""
    if (source / DETECTOR).exists():
        return source
    if (source / "phases.json").exists():
        folder = Run.open(source).path / "model"
        if (folder / DETECTOR).exists():
            return folder
        raise ValueError(f"{source} is a run without a model yet: finish it with `aaclip train --resume {source}`")
    raise ValueError(f"{source}: neither a run folder of aaclip nor a folder with {DETECTOR} in it")


def described(folder: Path) -> dict[str, Any]:
    """What `save_pretrained` wrote beside the weights.

    Raises:
        ValueError: A damaged file.
    """
    try:
        told: dict[str, Any] = json.loads((folder / DETECTOR).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / DETECTOR} is damaged: {error}") from error
    return told


def save_threshold(source: Path, threshold: Threshold) -> None:
    """Write a saved detector's threshold; the weights stay as they are."""
    folder = model_folder(source)
    write_json(folder / DETECTOR, described(folder) | {"threshold": threshold.to_dict()})


def save_memories(source: Path, memories: Mapping[str, Memory]) -> None:
    """Write what a saved detector remembers; its threshold, of other scores, goes first."""
    folder = model_folder(source)
    write_json(folder / DETECTOR, described(folder) | {"threshold": None})
    write_memories(folder / MEMORY, memories)
