"""Import checkpoints of the fork of the released code: cross-attention and feedback loops; no pickle is executed.

    aaclip import ckpt/loops detectors/loops --era matched --loop 2

Three versions of the fork save the same keys and compute differently, so that a file does not tell which one trained
it: the era is asked for. No test of the fork uses cross-attention (`cross_attention.at_test=false`).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from aaclip.released.checkpoints import Released, check_heads, settle_config
from aaclip.released.keys import rename_image, rename_text, tell_image, tell_text
from clip_common.errors import printable
from clip_common.training.checkpoint import read_checkpoint

Era = Literal["unscaled", "scaled", "matched"]
ERAS: dict[Era, tuple[str, ...]] = {
    "unscaled": ("cross_attention.weight=1", "cross_attention.norm_match=false"),
    "scaled": ("cross_attention.weight=0.1", "cross_attention.norm_match=false"),
    "matched": ("cross_attention.weight=0.1", "cross_attention.norm_match=true"),
}
"""Version of the fork → settings: x + c, x + 0.1·c, or x + 0.1·c with c scaled to the norm of x."""
PARTS = ("text_adapter", "text_cross_attn", "image_adapter", "image_cross_attn")
FINAL = "final_model.pth"
LOOP = re.compile(r"loop_(\d+)_(final|text_adapter|image_adapter)\.pth")
SINGLE = re.compile(r"(text|image)_adapter_cross_attn(?:_(\d+))?\.pth")
TEXT_FILE = "text_adapter_cross_attn.pth"
WEIGHTS = frozenset(f"{part}_proj.{what}" for part in ("q", "k", "v", "out") for what in ("weight", "bias"))
_SCALAR = np.float64(0).__reduce__()[0]
NUMPY: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),  # until numpy 1.26
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
]
"""Needed to read the losses that the fork saves beside the weights as numpy numbers; none of them runs code."""


def is_fork(source: Path) -> bool:
    """Return whether a folder or file has a name that only the fork uses."""
    names = [file.name for file in source.iterdir()] if source.is_dir() else [source.name]
    return any(name == FINAL or LOOP.fullmatch(name) or SINGLE.fullmatch(name) for name in names)


def read_fork(
    source: Path,
    *,
    config: str = "official",
    overrides: Sequence[str] = (),
    era: Era = "matched",
    loop: int | None = None,
    epoch: int | None = None,
) -> Released:
    """Read the checkpoints of a training of the fork.

    Args:
        source: Its folder, or one of the files.
        config: What the files do not say: a configuration's name, or a file.
        overrides: `section.field=value` each, over that.
        era: Version of the fork.
        loop: Read this loop instead of the last one.
        epoch: Read image_adapter_cross_attn_{epoch}.pth of a training without loops instead of the last one.

    Raises:
        ValueError: One line: no such file, another kind of file, or one that contradicts an override.
    """
    files = find_fork_files(source, loop=loop, epoch=epoch)
    parts = read_parts(files)
    told = ["cross_attention.enabled=true", *ERAS[era]]
    told += tell_text(parts["text_adapter"], file=files[0])
    told += [fact for fact in tell_image(parts["image_adapter"], file=files[-1]) if fact not in told]
    state = rename_text(parts["text_adapter"]) | rename_image(parts["image_adapter"])
    for part in ("text_cross_attn", "image_cross_attn"):
        if parts[part].keys() != WEIGHTS:
            wrong = sorted(parts[part].keys() ^ WEIGHTS)[0]
            raise ValueError(
                f"{printable(files[-1])}: {part} is not the fork's cross-attention, which has {len(WEIGHTS)} weights: "
                f"see {wrong}"
            )
        state |= {f"{part}.{name}": tensor for name, tensor in parts[part].items()}
    settings = settle_config(config, overrides, told, source=source)
    check_heads(settings, state, file=files[-1])
    return Released(files, tuple(told), settings, state, text=True, image=True)


def read_parts(files: Sequence[Path]) -> dict[str, Mapping[str, Tensor]]:
    """Return the weights of each of `PARTS`, from one file or from two.

    Raises:
        ValueError: A part that no file has, or a file that is no checkpoint.
    """
    found: dict[str, Mapping[str, Tensor]] = {}
    for file in files:
        with torch.serialization.safe_globals(NUMPY):
            content = read_checkpoint(file, key="text_adapter" if file == files[0] else "image_adapter")
        found |= {part: content[part] for part in PARTS if part in content}
    missing = [part for part in PARTS if part not in found]
    if missing:
        raise ValueError(f"{printable(files[-1])} has no {missing[0]}: it is not of the fork's cross-attention")
    return found


def find_fork_files(source: Path, *, loop: int | None = None, epoch: int | None = None) -> tuple[Path, ...]:
    """Return the file of both stages, or the files of stage 1 and of stage 2.

    Loops are ordered by number. Without `loop` or `epoch` it is the final model, else the last loop, else the last
    epoch of a training without loops.

    Raises:
        ValueError: No such files; the message lists the loops or epochs that there are.
    """
    if source.is_file():
        if loop is not None or epoch is not None:
            raise ValueError(f"{printable(source)} is a file: leave out --loop and --epoch, or name its folder")
        if found := LOOP.fullmatch(source.name):
            return (source,) if found[2] == "final" else _pair(source.parent, int(found[1]))
        if found := SINGLE.fullmatch(source.name):
            return _single(source.parent, epoch=int(found[2]) if found[2] else None)
        return (source,)
    loops = list_fork_loops(source)
    if loop is not None:
        if loop not in loops:
            listed = ", ".join(map(str, loops)) or "none"
            raise ValueError(f"{printable(source)} has no whole loop {loop}: its loops are {listed}")
        return loops[loop]
    if epoch is not None or not (loops or (source / FINAL).exists()):
        return _single(source, epoch=epoch)
    return (source / FINAL,) if (source / FINAL).exists() else loops[max(loops)]


def list_fork_loops(folder: Path) -> dict[int, tuple[Path, ...]]:
    """Return the files of each loop whose both stages were saved, in the order of their numbers."""
    names = [found for file in folder.iterdir() if (found := LOOP.fullmatch(file.name))]
    loops: dict[int, tuple[Path, ...]] = {}
    for number in sorted({int(found[1]) for found in names}):
        kinds = {found[2] for found in names if int(found[1]) == number}
        if "final" in kinds:
            loops[number] = (folder / f"loop_{number}_final.pth",)
        elif len(kinds) == 2:
            loops[number] = _pair(folder, number)
    return loops


def _pair(folder: Path, loop: int) -> tuple[Path, ...]:
    files = tuple(folder / f"loop_{loop}_{stage}_adapter.pth" for stage in ("text", "image"))
    return _check_there(files)


def _single(folder: Path, *, epoch: int | None) -> tuple[Path, ...]:
    image = "image_adapter_cross_attn.pth" if epoch is None else f"image_adapter_cross_attn_{epoch}.pth"
    return _check_there((folder / TEXT_FILE, folder / image))


def _check_there(files: tuple[Path, ...]) -> tuple[Path, ...]:
    for file in files:
        if not file.exists():
            raise ValueError(f"{printable(file)}: no such file; a training of the fork has one of each stage")
    return files
