"""Score a model, a run or a model named on the command line: metrics, result.json and a row of the run registry."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from clip_common.devices import pick_device
from clip_common.errors import check_list
from clip_common.features import FeatureCache
from clip_common.metrics import Paired, paired_bootstrap
from clip_common.reporting import Progress, Reporter, silent
from clipse.config import Config
from clipse.data import ImageCache, ImageRecord, read_records
from clipse.models.features import TextFeatures, load_frozen_features
from clipse.models.retrieval import RetrievalModel
from clipse.retriever.opening import open_source, open_tagged
from clipse.scoring.embedding import embed_pairs
from clipse.scoring.evaluation import Evaluation, evaluate


@dataclass(frozen=True)
class Against:
    """Scores of a second model on the same images.

    Attributes:
        name: The model's name.
        evaluation: Its scores.
        ahead: rsum of the first model minus this one's, paired by image.
    """

    name: str
    evaluation: Evaluation
    ahead: Paired


@dataclass(frozen=True)
class Scored:
    """Result of `score`.

    Attributes:
        config: The configuration used: a run's own with the overrides, or the defaults with the overrides.
        name: The run's name, or `source` as given.
        epochs: Epochs that the run was trained; 0 for a model that is not a run.
        evaluation: The scores.
        against: Scores of the second model, if one was named.
        written: Files that were written.
    """

    config: Config
    name: str
    epochs: int
    evaluation: Evaluation
    against: Against | None
    written: list[Path]


def score(
    source: str, *, against: str | None = None, overrides: Sequence[str] = (), reporter: Reporter = silent
) -> Scored:
    """Score a run folder, a saved model, a model by name, or a weights file, on the split that `split` names.

    The scores of a run are added to its result.json and to the registry of runs.

    Args:
        source: A run folder (its own configuration applies unless overridden), a folder that `save_pretrained` wrote,
            or a value of `model.name`.
        against: A second model to score on the same images, such as `ViT-B-32:laion2b_s34b_b79k`.
        overrides: `data.root=…`, `split=…` and the like.
        reporter: Shows progress.

    Raises:
        ValueError: One line: a model that cannot be opened, data that cannot be used, or a split of fewer than two
            images.
    """
    check_list(overrides, "overrides")
    other = None if against is None else open_tagged(against)  # a wrong name is reported before anything is scored
    opened = open_source(source, overrides=overrides)
    config, run = opened.config, opened.run
    # the ledger has the epochs of a run that was killed before its result.json was written
    name, epochs = (source, 0) if run is None else (run.name, int(run.ledger.payload("fit")["epochs"]))
    records = read_records(config.data, cache=config.cache_folder)
    rows, what = records.splits[config.split], f"embedding the {config.split} split with"
    evaluation = score_split(opened.model, rows, config, name=f"{what} {opened.name}", reporter=reporter)
    written = []
    if run is not None:
        scores = evaluation.as_dict() | {"data": str(config.data.root), "skipped_images": records.skipped}
        written.append(run.write_result(run.result | {config.split: scores}))
        run.register({"split": config.split, "data": str(config.data.root)} | evaluation.result.metrics)
    second = None
    if other is not None:
        theirs = score_split(other.model, rows, config, name=f"{what} {other.name}", reporter=reporter)
        second = Against(other.name, theirs, ahead=paired_bootstrap(evaluation.result, theirs.result))
    return Scored(config, name, epochs, evaluation, second, written)


def score_split(
    model: RetrievalModel,
    records: Sequence[ImageRecord],
    config: Config,
    *,
    name: str,
    devices: str = "auto",
    reporter: Reporter = silent,
) -> Evaluation:
    """Score a model on the images of a split; features of locked trunks are read from the cache, or added to it.

    Args:
        model: Moved to the device.
        records: The images.
        config: Names the cache, the batch size and the workers.
        name: Of model and split, for the progress line.
        devices: `trainer.devices`.
        reporter: Shows progress.
    """
    cache = FeatureCache(config.cache_folder / "features")
    features = load_frozen_features(model, {"scored": records}, cache=cache, reporter=reporter, devices=devices)
    with reporter(name) as progress:
        return score_records(
            model.to(pick_device(devices)),
            records,
            image_NF=features.images.get("scored"),
            texts=features.texts,
            batch_size=config.data.batch_size,
            workers=config.data.workers,
            progress=progress,
        )


def score_records(
    model: RetrievalModel,
    records: Sequence[ImageRecord],
    *,
    image_NF: Tensor | None = None,
    texts: TextFeatures | None = None,
    pixels: ImageCache | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model on the images of a split and all of their captions.

    Args:
        model: On its device.
        records: The images.
        image_NF, texts, pixels, batch_size, workers, progress: As for `embed_pairs`.

    Raises:
        ValueError: Fewer than two images.
        DataError: An image cannot be read.
    """
    if len(records) < 2:
        raise ValueError(f"retrieval among {len(records)} image(s) says nothing: give a split with at least 2")
    pairs = embed_pairs(
        model,
        records,
        image_NF=image_NF,
        texts=texts,
        pixels=pixels,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    return evaluate(pairs, ceiling=read_ceiling(records))


def read_ceiling(records: Sequence[ImageRecord]) -> dict[str, float]:
    """Return the attribute oracle's metrics if the folder is of the procedural world, else an empty dict."""
    from clip_common.synthetic import oracle_of_folder

    root = records[0].path.parent.parent
    return oracle_of_folder(root, [record.name for record in records], [record.captions for record in records])
