"""A model, a run or embeddings, to numbers: retrieval both ways with intervals, and the ceiling where there is one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_common.devices import pick_device
from clip_common.metrics import ImageTextResult, Paired, image_text_retrieval, paired_bootstrap
from clip_common.reporting import Progress, Reporter, silent
from clipse.config import Config
from clipse.data import ImageRecord, read_records
from clipse.models.retrieval import RetrievalModel, Source, open_source
from clipse.released.results import write_registry
from clipse.scoring.embedding import EmbeddedPairs, embed_pairs


@dataclass(frozen=True)
class Evaluation:
    """What `clipse eval` prints and writes.

    Attributes:
        result: `.metrics` holds i2t/R@1 … t2i/mAP@10 as fractions and rsum from 0 to 600, `.intervals` their 95 %
            bootstrap intervals over images.
        chance: rsum of a random order on this gallery.
        ceiling: What a reader of the attributes reaches, by the same keys, on the procedural world; else empty.
        images, captions: How many were scored.
    """

    result: ImageTextResult
    chance: float
    ceiling: dict[str, float]
    images: int
    captions: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "metrics": self.result.metrics,
            "intervals_95": {key: list(bounds) for key, bounds in self.result.intervals.items()},
            "chance_rsum": self.chance,
            "ceiling": self.ceiling,
            "images": self.images,
            "captions": self.captions,
        }


def evaluate(
    model: RetrievalModel,
    records: Sequence[ImageRecord],
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model on the images of a split and all of their captions.

    Raises:
        ValueError: Fewer than two images: there is nothing to retrieve among.
    """
    if len(records) < 2:
        raise ValueError(f"retrieval among {len(records)} image(s) says nothing: give a split with at least 2")
    pairs = embed_pairs(model, records, batch_size=batch_size, workers=workers, progress=progress)
    return score(pairs, records)


def evaluate_source(
    source: str, *, overrides: Sequence[str] = (), reporter: Reporter = silent
) -> tuple[Config, Evaluation, list[Path]]:
    """Score a run folder, a model by name, or a weights file; register the scores.

    Args:
        source: A run folder (its configuration holds unless overridden), a saved model, or what `model.name` takes.
        overrides: `data.root=…`, `split=…` and the like.
        reporter: Shows progress.

    Returns:
        The configuration that held, the scores, and the files that were written.
    """
    opened = open_source(source, overrides=overrides)
    config, model, run = opened.config, opened.model.to(pick_device()), opened.run
    # from the ledger: a run that was killed while it was scored has a model and no result.json
    name, epoch = (source, 0) if run is None else (run.name, int(run.ledger.payload("fit")["epochs"]))
    records = read_records(config.data)
    with reporter(f"embedding the {config.split} split") as progress:
        evaluation = evaluate(
            model,
            records.splits[config.split],
            batch_size=config.data.batch_size,
            workers=config.data.workers,
            progress=progress,
        )
    written = [write_registry(config, name, evaluation.result.metrics, epoch=epoch)]
    if run is not None:
        scores = evaluation.as_dict() | {"data": str(config.data.root), "skipped_images": records.skipped}
        written.append(run.write_result(run.result | {config.split: scores}))
        run.register({"split": config.split, "data": str(config.data.root)} | evaluation.result.metrics)
    return config, evaluation, written


def open_other(name: str) -> Source:
    """A run folder, a saved model, or what `model.name` takes, with `:TAG` behind it for pretrained weights.

    Raises:
        ValueError: None of these.
    """
    model, _, tag = name.rpartition(":")
    if model and not Path(name).exists() and model not in ("local-dir", "hf-hub"):
        return open_source(model, overrides=[f"model.pretrained={tag}"])
    return open_source(name)


def evaluate_against(
    evaluation: Evaluation, other: Source, config: Config, *, reporter: Reporter = silent
) -> tuple[Evaluation, Paired]:
    """Score another model on the same images: its scores, and how far ahead `evaluation` is in rsum.

    Args:
        evaluation, config: What `evaluate_source` gave.
        other: What `open_other` gave.
        reporter: Shows progress.
    """
    data = config.data
    with reporter(f"embedding the {config.split} split with {other.name}") as progress:
        theirs = evaluate(
            other.model.to(pick_device()),
            read_records(data).splits[config.split],
            batch_size=data.batch_size,
            workers=data.workers,
            progress=progress,
        )
    return theirs, paired_bootstrap(evaluation.result, theirs.result)


def score(pairs: EmbeddedPairs, records: Sequence[ImageRecord]) -> Evaluation:
    """Metrics of embeddings that are already there."""
    result = image_text_retrieval(pairs.image_ND, pairs.text_TD, pairs.text_to_image_T)
    return Evaluation(
        result=result,
        chance=chance_rsum(len(pairs.image_ND), len(pairs.text_TD)),
        ceiling=ceiling(records),
        images=len(pairs.image_ND),
        captions=len(pairs.text_TD),
    )


def chance_rsum(images: int, captions: int, ks: tuple[int, ...] = (1, 5, 10)) -> float:
    """rsum expected of a random order, with an equal number of captions an image.

    Text to image hits within K with probability K/N; image to text with 1 − C(T−c, K)/C(T, K) for c captions among T.
    """
    own = captions / images
    text_to_image = sum(min(1.0, k / images) for k in ks)
    image_to_text = 0.0
    for k in ks:
        miss = 1.0
        for drawn in range(k):
            miss *= max(0.0, captions - own - drawn) / max(1.0, captions - drawn)
        image_to_text += 1.0 - miss
    return 100.0 * (text_to_image + image_to_text)


def ceiling(records: Sequence[ImageRecord]) -> dict[str, float]:
    """The attribute oracle's metrics where the folder is of the procedural world, else nothing."""
    from clip_common.synthetic import oracle_of_folder

    root = records[0].path.parent.parent
    return oracle_of_folder(root, [record.name for record in records], [record.captions for record in records])
