"""Resume a two-stage run: which stages remain, and what may still change."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, Literal

from aaclip.config import Config
from clip_common.config import load_config, to_yaml
from clip_common.runs import Run
from clip_common.runs.environment import rank
from clip_common.runs.files import write_text

STAGES = ("text", "image")
"""In the order of training; also the names of their phases in the run's ledger."""
JOINT = "joint"
"""Phase of the ledger in which both are trained at once."""
Stage = Literal["text", "image", "both"]
"""Stages to train in one call; `both` trains what is left."""


def resume_config(run: Run, config: Config) -> Config:
    """Return the configuration to resume a run with: its own, except for stages that were not started yet.

    0 epochs of a finished stage mean "train it no further", as in the released code, and change nothing.

    Args:
        run: Started before.
        config: Asked for now.

    Raises:
        ValueError: `config` changes something that the finished training depends on.
    """
    own = read_config(run)
    for name in STAGES:
        if run.ledger.done(name) and getattr(config.stages, name).epochs == 0:
            config = replace(config, stages=replace(config.stages, **{name: getattr(own.stages, name)}))
    started = [run.ledger.started(name) for name in STAGES]
    # stage 2 depends on stage 1, so that starting it fixes the settings of both
    free = tuple(f"stages.{name}." for index, name in enumerate(STAGES) if not any(started[index:]))
    if run.ledger.started(JOINT):
        free = ()
    was, wanted = dict(_leaves(asdict(own))), dict(_leaves(asdict(config)))
    fixed = [key for key, value in was.items() if wanted[key] != value and not key.startswith(free)]
    if fixed:
        key = fixed[0]
        raise ValueError(
            f"run {run.path} was started with {key}={_shown(was[key])}, not {_shown(wanted[key])}: leave that out to "
            "continue it, or name a new run"
        )
    return config


def read_config(run: Run) -> Config:
    """Read the configuration that a run was last trained with."""
    return load_config(Config, config=run.path / "config.yaml")


def mark_resumed(run: Run, config: Config) -> Run:
    """Record in the run folder that it was resumed, and with which configuration."""
    own = read_config(run)
    run = Run.resume(run.path.resolve(), config_yaml=to_yaml(own))
    if rank() == 0 and config != own:
        write_text(run.path / "config.yaml", to_yaml(config))
    return run


def list_pending(config: Config, run: Run | None) -> list[str]:
    """Return the stages that the configuration has and the run has not finished; without a run, all of them."""
    wanted = [name for name in STAGES if getattr(config.stages, name).epochs > 0]
    if config.stages.order == "joint":
        wanted = [JOINT]
    return [name for name in wanted if run is None or not run.ledger.done(name)]


def list_stages(config: Config, stage: Stage, run: Run | None) -> list[str]:
    """Return the pending stages that `stage` asks for.

    Raises:
        ValueError: A stage that the configuration leaves out, stage 2 before stage 1, or one of two that are joint.
    """
    left = list_pending(config, run)
    if stage == "both":
        return left
    if config.stages.order == "joint":
        raise ValueError(
            f"--stage {stage}: stages.order=joint trains both stages at once: leave --stage out, or set "
            "stages.order=separate"
        )
    if getattr(config.stages, stage).epochs == 0:
        raise ValueError(f"--stage {stage}: stages.{stage}.epochs=0 leaves it out: give it epochs, or another stage")
    if stage == "image" and "text" in left:
        raise ValueError(
            "--stage image: stage 1 is not done: start with --stage text, or leave it out with stages.text.epochs=0"
        )
    return [name for name in left if name == stage]


def check_joint(config: Config) -> None:
    """Raise ValueError if both stages cannot be trained at once with this configuration."""
    if config.stages.order != "joint":
        return
    for name in STAGES:
        if getattr(config.stages, name).epochs == 0:
            raise ValueError(
                f"stages.{name}.epochs=0 with stages.order=joint, which trains both stages: give it epochs, or set "
                "stages.order=separate"
            )
    if config.cross_attention.enabled:
        raise ValueError(
            "cross_attention.enabled=true with stages.order=joint: images attend to texts that stage 1 has trained: "
            "set one of them otherwise"
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, prefix=f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
