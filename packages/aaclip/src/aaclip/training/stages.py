"""The two stages of a run that is gone on with: what may still be set otherwise, and what is left to do."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from aaclip.config import Config
from clip_common.config import load_config
from clip_common.runs import Run
from clip_common.runs.environment import rank

STAGES = ("text", "image")
"""In the order in which they are trained; names of their phases in the run's ledger."""
Stage = Literal["text", "image", "both"]
"""What `aaclip train` does now."""


def holds_run(folder: Path) -> bool:
    """Whether a run was begun in a folder; a saved detector is none."""
    return (folder / "config.yaml").is_file() and (folder / "environment.json").is_file()


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something else than a run. Later ranks ask nothing: the first may have made it.

    Raises:
        ValueError: One line.
    """
    if rank() == 0 and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} exists and is no run of aaclip: name a new folder (for text_adapter.pth of the released code "
            "there is `aaclip import`)"
        )


def resume_config(run: Run, config: Config) -> Config:
    """The configuration that a run goes on with: its own, but for stages that were not begun yet.

    0 epochs of a stage that is done mean "no more of it", as in the released code, and change nothing.

    Args:
        run: Begun before.
        config: What is asked for now.

    Raises:
        ValueError: A change of something that what was trained so far rests on.
    """
    own = read_config(run)
    for name in STAGES:
        if run.ledger.done(name) and getattr(config.stages, name).epochs == 0:
            config = replace(config, stages=replace(config.stages, **{name: getattr(own.stages, name)}))
    begun = [run.ledger.started(name) for name in STAGES]
    # stage 2 stands on stage 1, which is closed with it
    free = tuple(f"stages.{name}." for index, name in enumerate(STAGES) if not any(begun[index:]))
    was, wanted = dict(_leaves(asdict(own))), dict(_leaves(asdict(config)))
    fixed = [key for key, value in was.items() if wanted[key] != value and not key.startswith(free)]
    if fixed:
        key = fixed[0]
        raise ValueError(
            f"run {run.path} was begun with {key}={_shown(was[key])}, not {_shown(wanted[key])}: leave that out to go "
            "on with it, or name a new run"
        )
    return config


def read_config(run: Run) -> Config:
    """What a run was begun or gone on with."""
    return load_config(Config, config=run.path / "config.yaml")


def list_pending(config: Config, run: Run | None) -> list[str]:
    """Stages that the configuration has and the run has not done; None has done nothing."""
    wanted = [name for name in STAGES if getattr(config.stages, name).epochs > 0]
    return [name for name in wanted if run is None or not run.ledger.done(name)]


def list_stages(config: Config, stage: Stage, run: Run | None) -> list[str]:
    """The pending stages that `stage` asks for.

    Raises:
        ValueError: A stage that the configuration leaves out, or stage 2 before stage 1.
    """
    left = list_pending(config, run)
    if stage == "both":
        return left
    if getattr(config.stages, stage).epochs == 0:
        raise ValueError(f"--stage {stage}: stages.{stage}.epochs=0 leaves it out: give it epochs, or another stage")
    if stage == "image" and "text" in left:
        raise ValueError(
            "--stage image: stage 1 is not done: begin with --stage text, or leave it out with stages.text.epochs=0"
        )
    return [name for name in left if name == stage]


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, prefix=f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
