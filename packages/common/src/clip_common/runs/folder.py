"""The run folder."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from clip_common.errors import check_list
from clip_common.runs.card import format_model_card
from clip_common.runs.environment import describe_environment, rank
from clip_common.runs.files import read_json, write_json, write_text
from clip_common.runs.ledger import PhaseLedger, now
from clip_common.runs.table import MetricsCsv, append_row

PATH_VARIABLE = "CLIP_COMMON_RUN"
"""Environment variable that tells child processes the run's folder."""


class RunExistsError(ValueError):
    """A run of that name exists, and resuming it was not requested."""


class Run:
    """A run folder.

    It holds config.yaml, environment.json, metrics.csv, phases.json, checkpoints/, plots/, result.json and README.md.
    Make one with `Run.create`, continue one with `Run.resume`, read one with `Run.open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = MetricsCsv(path / "metrics.csv")
        self.ledger = PhaseLedger(path / "phases.json")

    @classmethod
    def create(
        cls,
        package: str,
        *,
        config_yaml: str,
        name: str | None = None,
        label: str = "",
        root: str | Path = Path("runs"),
        group: str | None = None,
        verb: str = "train",
        resume: bool = False,
    ) -> Run:
        """Make the folder `root/package/name`, complete or not at all; or reopen it.

        Of several processes (torchrun, srun, Lightning's launcher) rank 0 makes the folder and the others open it.
        Under torchrun and srun all need the same `name`.

        Args:
            package: Import name of the system.
            config_yaml: The resolved configuration (`to_yaml(config)`); on resume, the one the run started with.
            name: Name of the folder, any Unicode; default: `label`, date and time.
            label: Start of a default name, e.g. loss, model and seed.
            root: Folder of all runs and of their registry.
            group: Folder inside `root` that holds the run; default: `package`.
            verb: Command of the package that makes the run; only `train` leaves a model.
            resume: Resume the run of that name if it exists.

        Raises:
            RunExistsError: The folder exists and `resume` is false.
            ValueError: `name` is not a folder name, or, on resume, is missing or belongs to another configuration.
        """
        if rank() > 0 and PATH_VARIABLE in os.environ:
            return cls.open(os.environ.pop(PATH_VARIABLE))
        if name is None and (resume or rank() > 0):
            raise ValueError("to resume a run, or to start one in several processes, give its name")
        if name is None:
            name = "_".join(filter(None, (label, datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))))
        if not name or name.startswith(".") or any(character in name for character in "/\\\0"):
            raise ValueError(f"run name {name!r}: expected the name of a folder, without slashes or a leading dot")
        path = Path(root) / (package if group is None else group) / name
        if rank() > 0:
            _wait_for(path)
            return cls.open(path)
        os.environ[PATH_VARIABLE] = str(path.absolute())  # for processes that Lightning's launcher starts from here
        if path.exists() and resume:
            return cls.resume(path, config_yaml=config_yaml)
        draft = path.with_name(f".{name}.{os.getpid()}.tmp")
        try:
            draft.mkdir(parents=True)
            write_text(draft / "config.yaml", config_yaml)
            write_json(draft / "environment.json", {"package": package, "verb": verb} | describe_environment())
            draft.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise _exists(path) from None
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return cls(path)

    @classmethod
    def check_new(cls, package: str, name: str, *, root: str | Path = Path("runs")) -> None:
        """Raise RunExistsError if the run exists; call before slow work. A no-op on ranks above 0."""
        path = Path(root) / package / name
        if rank() == 0 and path.exists():
            raise _exists(path)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open a finished or killed run, to read or evaluate it.

        Raises:
            ValueError: `path` is not a run folder, or an older version made it.
        """
        path = Path(path)
        if not is_run(path):
            raise ValueError(f"{path}: not a run folder (it holds no config.yaml and environment.json)")
        run = cls(path)
        if "package" not in run.environment:
            raise ValueError(f"{path} was made by an older version, which this one cannot continue: run it again")
        return run

    @classmethod
    def resume(cls, path: str | Path, *, config_yaml: str) -> Run:
        """Resume the run folder `path`, which may have been moved or renamed.

        Args:
            path: The run folder, the same for all processes.
            config_yaml: The configuration that the run started with.

        Raises:
            ValueError: `path` is not a run folder, or was started with another configuration.
        """
        run = cls.open(path)
        if rank() > 0:
            return run
        before, after = run.config_yaml.splitlines(), config_yaml.splitlines()
        if before != after:
            changed = [f"{old.strip()} → {new.strip()}" for old, new in zip(before, after, strict=False) if old != new]
            what = "; ".join(changed[:3]) or "fields were added or removed"
            raise ValueError(
                f"run {path} was started with another configuration ({what}): resume with that, or name a new run"
            )
        started = run.environment
        resumed = [*started.get("resumed", []), describe_environment()]
        write_json(run.path / "environment.json", started | {"resumed": resumed})
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this run while the block lasts; the lock also ends with the process.

        The lock is reentrant within a process. In a job of several processes rank 0 holds it for all.

        Raises:
            ValueError: Another process holds it.
        """
        if rank() > 0:
            yield
            return
        lock = FileLock(self.path.resolve() / ".lock", timeout=0, is_singleton=True)
        try:
            held = lock.acquire()
        except Timeout:
            raise ValueError(
                f"run {self.path} is being trained by another process: wait until that ends, or name a new run"
            ) from None
        with held:
            yield

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name

    @property
    def environment(self) -> dict[str, Any]:
        """Package, verb, command, versions, git revision and hardware of the run, and of each time it was resumed."""
        return dict(read_json(self.path / "environment.json"))

    @property
    def package(self) -> str:
        """Import name of the system that ran, e.g. `clipse`."""
        return str(self.environment["package"])

    @property
    def verb(self) -> str:
        """Command of the package that made the run, e.g. `train` or `compare`."""
        return str(self.environment["verb"])

    @property
    def config_yaml(self) -> str:
        """The configuration that the run started with."""
        return (self.path / "config.yaml").read_text(encoding="utf-8")

    @property
    def result(self) -> dict[str, Any]:
        """Content of result.json; empty before `write_result`."""
        return dict(read_json(self.path / "result.json"))

    def folder(self, name: str) -> Path:
        """Return a folder inside the run (`plots`, `model`, …), made if it is missing."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write_result(self, result: Mapping[str, Any]) -> Path:
        """Write result.json. numpy and torch values become numbers, paths strings."""
        file = self.path / "result.json"
        return write_json(file, dict(result)) if rank() == 0 else file

    def write_model_card(
        self,
        *,
        title: str,
        summary: str,
        results: Mapping[str, Any] | None = None,
        usage: str = "",
        sections: Mapping[str, str] | None = None,
        tags: Sequence[str] = (),
        licence: str = "apache-2.0",
    ) -> Path:
        """Write README.md as a Hugging Face model card: summary, results, usage, sections, configuration, versions.

        Args:
            title: First heading.
            summary: One paragraph: the model and its purpose.
            results: Name → number or text; one table.
            usage: Python that loads and uses the model.
            sections: Heading → Markdown, e.g. {"Data": …, "Limits": …}.
            tags: Tags of the card's front matter.
            licence: Licence identifier of the front matter.
        """
        check_list(tags, "tags")
        file = self.path / "README.md"
        if rank() > 0:
            return file
        card = format_model_card(
            title=title,
            summary=summary,
            results=results or {},
            usage=usage,
            sections=sections or {},
            tags=[self.package, *tags],
            licence=licence,
            config_yaml=self.config_yaml,
            environment=self.environment,
        )
        return write_text(file, card)

    def register(self, row: Mapping[str, Any]) -> Path:
        """Append `time, package, name` and `row` to `root/registry.csv`, under a file lock."""
        registry = self.path.parent.parent / "registry.csv"
        if rank() == 0:
            append_row(registry, {"time": now(), "package": self.package, "name": self.name} | dict(row))
        return registry

    def register_once(self, row: Mapping[str, Any]) -> None:
        """Add the row of a training to the registry, unless it was added before the run was resumed."""
        if not self.ledger.done("register"):
            self.ledger.start("register")
            self.register(row)
            self.ledger.finish("register")


def is_run(path: Path) -> bool:
    """Return whether `path` is a run folder."""
    return (path / "config.yaml").is_file() and (path / "environment.json").is_file()


def _exists(path: Path) -> RunExistsError:
    return RunExistsError(f"run {path} exists: resume it, or choose another name")


def _wait_for(path: Path, *, seconds: float = 60) -> None:
    """Wait until rank 0 has made the folder."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise ValueError(f"{path}: rank 0 did not make it in {seconds} s: give every process the same name")
        time.sleep(0.1)
