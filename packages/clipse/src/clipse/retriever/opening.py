"""Open the model that a person names: a run folder, a saved model, or a value of `model.name`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_common.backbones.origins import is_architecture
from clip_common.backbones.transformers_clip import is_of_transformers
from clip_common.config import load_config
from clip_common.errors import check_list
from clip_common.runs import Run
from clip_common.runs.folder import is_run
from clip_common.runs.opening import MARKER, find_model
from clipse.config import Config
from clipse.models.retrieval import FORMAT, RetrievalModel, load_towers


@dataclass(frozen=True)
class Opened:
    """A model that was opened by name.

    Attributes:
        model: In eval mode.
        config: The run's own configuration, or the defaults; with the overrides.
        run: The run folder; None for a model that is not a run.
        name: For messages: the run's name, or the model's with the tag of its weights.
    """

    model: RetrievalModel
    config: Config
    run: Run | None
    name: str


def open_source(source: str, *, overrides: Sequence[str] = ()) -> Opened:
    """Load a run folder, a folder that `save_pretrained` wrote, or a value of `model.name`.

    Raises:
        ValueError: One line: none of these, a damaged one, a run without a model yet, or overrides of settings that a
            trained run keeps.
    """
    check_list(overrides, "overrides")
    if is_run(Path(source)):
        run = Run.open(source)
        folder = find_model(run.path, package="clipse", format=FORMAT)  # before a configuration of another package
        config = load_config(Config, config=run.path / "config.yaml", overrides=overrides)
        _check_settled(overrides, run)
        return Opened(RetrievalModel.from_pretrained(folder), config, run=run, name=run.name)
    config = load_config(Config, overrides=[f"model.name={source}", *overrides])
    if (Path(source) / MARKER).is_file() and not is_of_transformers(Path(source)):
        return Opened(RetrievalModel.from_pretrained(source), config, run=None, name=Path(source).resolve().name)
    model = RetrievalModel(load_towers(config.model, seed=config.trainer.seed)).eval()
    return Opened(model, config, run=None, name=" ".join(filter(None, [Path(source).name, config.model.pretrained])))


def open_model(source: str | Path) -> RetrievalModel:
    """Load a run folder, a folder that `save_pretrained` wrote, or a CLIP by the name of its weights.

    Raises:
        ValueError: See `open_source`.
    """
    name = str(source)
    named = name == "tiny" or name.startswith(("hf-hub:", "local-dir:")) or is_architecture(name.partition(":")[0])
    if named or is_of_transformers(Path(source)):
        return open_tagged(name).model
    return RetrievalModel.from_pretrained(source)


def open_tagged(name: str) -> Opened:
    """Load like `open_source`; `NAME:TAG` names pretrained weights of an open_clip architecture.

    Raises:
        ValueError: See `open_source`.
    """
    model, _, tag = name.rpartition(":")
    if model and not Path(name).exists() and model not in ("local-dir", "hf-hub"):
        return open_source(model, overrides=[f"model.pretrained={tag}"])
    return open_source(name)


def _check_settled(overrides: Sequence[str], run: Run) -> None:
    keys = [text.partition("=")[0].strip() for text in overrides]
    settled = [key for key in keys if not key.startswith("data.") and key not in ("split", "runs", "results")]
    if settled:
        raise ValueError(
            f"{', '.join(settled)}: the run {run.name} is trained and keeps its settings; set data.*, split, runs or "
            "results, or train another run"
        )
