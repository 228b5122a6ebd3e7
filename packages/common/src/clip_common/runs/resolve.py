"""The configuration of a new or a resumed run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from clip_common.config import load_config
from clip_common.runs.folder import Run
from clip_common.runs.opening import check_made_by

Schema = TypeVar("Schema")


def resolve(
    schema: type[Schema],
    *,
    package: str,
    config: str | None = None,
    overrides: Sequence[str] = (),
    resume: Path | None = None,
) -> Schema:
    """Return the configuration of a new run, or that of the run to resume.

    Args:
        schema: Class of the package's configuration.
        package: Import name of the package whose `configs/` folder is searched.
        config: Name of a configuration, or a file.
        overrides: `section.field=value` each.
        resume: Run folder to resume; it keeps its own configuration.

    Raises:
        ValueError: An unknown key, a wrong value, no such run or one of another package, or overrides for a run that is
            resumed.
    """
    if resume is None:
        return load_config(schema, config=config, overrides=overrides, package=package)
    if config or overrides:
        raise ValueError("--resume keeps the run's own configuration: leave out --config and overrides")
    run = Run.open(resume)
    check_made_by(run, package=package)
    return load_config(schema, config=run.path / "config.yaml")
