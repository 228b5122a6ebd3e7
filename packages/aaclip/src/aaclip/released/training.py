"""`--save_path` of the released code: train in a folder of any name, and continue there when it is named again."""

from collections.abc import Sequence
from pathlib import Path

from aaclip.config import Config
from aaclip.training import experiment
from aaclip.training.experiment import Trained
from aaclip.training.stages import Stage
from clip_common.config import load_config, to_yaml
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.environment import rank
from clip_common.runs.folder import is_run


def resolve(
    save_path: Path, *, config: str | None = None, overrides: Sequence[str] = (), resume: Path | None = None
) -> Config:
    """Return the configuration of the run at `save_path`.

    Args:
        save_path: If a run was started there, its own configuration replaces a `config` that is not given.
        config: Name of a configuration, or a file.
        overrides: `section.field=value` each, over either.
        resume: Must be None.

    Raises:
        ValueError: An unknown key, a wrong value, or a second name for the run.
    """
    if resume is not None:
        raise ValueError("--resume and --save_path both name the run: leave out one of them")
    started = is_run(save_path)
    own = save_path / "config.yaml" if started and config is None else config
    settings = load_config(Config, config=own, overrides=overrides, package="aaclip")
    if not started and settings.name is not None:
        raise ValueError(f"name={settings.name} and --save_path {save_path} both name the run: give one of them")
    return settings


def train(config: Config, *, save_path: Path, stage: Stage = "both", reporter: Reporter = silent) -> Trained:
    """Train in the folder `save_path`: a new run, or the one that was started there.

    Args:
        config: Of `resolve`.
        save_path: The run folder itself.
        stage: What to do now; a run with a stage left has no detector yet.
        reporter: Shows progress of what precedes and follows the fits.

    Raises:
        ValueError: See `experiment.train`; or the folder holds something other than a run.
    """
    if is_run(save_path):
        return experiment.train(config, resume=save_path, stage=stage, reporter=reporter)
    check_free(save_path)
    job = experiment.prepare(config, stage=stage)
    parent = save_path.parent
    run = Run.create(
        "aaclip",
        config_yaml=to_yaml(config),
        name=save_path.name,
        root=parent.parent,
        group=parent.name or ".",  # a name without a folder before it
    )
    with run.locked():
        return experiment.run_job(job, run, resumed=False, reporter=reporter)


def check_free(folder: Path) -> None:
    """Raise ValueError if a folder holds something other than a run. A no-op on ranks above 0: rank 0 makes the run."""
    if rank() == 0 and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder} exists and is no run of aaclip: name a new folder (to read text_adapter.pth of the released "
            "code, use `aaclip import`)"
        )
