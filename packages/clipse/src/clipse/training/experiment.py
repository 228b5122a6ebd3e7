"""Train a model from a configuration and leave a run folder with its weights, scores, plots and model card."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from clip_common.backbones import Tokenizer
from clip_common.backbones.tokenizers import find_cut
from clip_common.config import to_yaml
from clip_common.devices import device_count, divide_batch, pick_device
from clip_common.features import FeatureCache
from clip_common.reporting import Reporter, silent
from clip_common.runs import Run
from clip_common.runs.environment import rank
from clip_common.runs.opening import check_made_by
from clip_common.training import check_trainer, fit, load_weights
from clipse.config import Config, DataConfig
from clipse.data import DataError, ImageCache, ImageRecord, read_records
from clipse.models.features import load_frozen_features
from clipse.models.retrieval import RetrievalModel, load_towers
from clipse.report.plots import draw_run
from clipse.scoring.evaluation import Evaluation
from clipse.scoring.score import score_records
from clipse.training.modules import RetrievalData, RetrievalModule


@dataclass(frozen=True)
class Trained:
    """Result of `train`.

    Attributes:
        run: The run folder, with the best weights in `model/` and the last in `checkpoints/fit/last.ckpt`.
        validation: Scores of the best weights on the validation split; None on ranks above 0.
        plots: PNG files of the run.
    """

    run: Run
    validation: Evaluation | None
    plots: list[Path]


def train(config: Config, *, resume: Path | None = None, reporter: Reporter = silent) -> Trained:
    """Train, select the weights with the best validation rsum, and leave a complete run folder.

    Args:
        config: See `clipse.config`.
        resume: Run folder to resume; `config` must be its configuration. It ends with the weights of an uninterrupted
            run.
        reporter: Shows progress of the work before and after the fit.

    Raises:
        ValueError: One line: data, model or configuration that cannot be used. Nothing was written then.
    """
    if resume is not None:
        check_made_by(Run.open(resume), package="clipse", verb="train")
    elif config.name is not None:
        Run.check_new("clipse", config.name, root=config.runs)
    divide_batch(config.data.batch_size, world=device_count(config.trainer))
    check_trainer(config.trainer)
    records = read_records(config.data, cache=config.cache_folder)
    check_sizes(config.data, records.splits)
    towers = load_towers(config.model, seed=config.trainer.seed)
    model = RetrievalModel(towers, temperature=config.loss.temperature, bias=config.loss.name == "siglip")
    fitted = {split: records.splits[split] for split in ("train", "val")}
    features = load_frozen_features(
        model,
        fitted,
        cache=FeatureCache(config.cache_folder / "features"),
        reporter=reporter,
        devices=config.trainer.devices,
    )
    cut = {split: count_cut_captions(towers.tokenizer, rows) for split, rows in fitted.items()}
    image_caches = {}
    if config.data.cache and not features.images:
        for split, rows in fitted.items():
            # random crops keep at least nine tenths of the area, so a little more than the towers' size is enough
            side = round(towers.preprocess.size * (1.15 if split == "train" and config.data.augment else 1.0))
            with reporter(f"decoding images of the {split} split") as progress:
                image_caches[split] = ImageCache(config.cache_folder / "images", rows, side=side, progress=progress)
    module = RetrievalModule(model, config, image_rows=bool(features.images), text_rows=features.texts is not None)
    data = RetrievalData(model, fitted, config, features=features, image_caches=image_caches)

    if resume is None:
        label = f"{config.loss.name}-{config.model.label}-s{config.trainer.seed}"
        run = Run.create("clipse", config_yaml=to_yaml(config), name=config.name, label=label, root=config.runs)
    else:
        run = Run.resume(resume.resolve(), config_yaml=to_yaml(config))
    result = fit(module, data, config.trainer, run, monitor="val/rsum", mode="max", resume=resume is not None)
    if rank() != 0:
        return Trained(run=run, validation=None, plots=[])

    load_weights(module, result.best)
    model.eval().to(pick_device(config.trainer.devices)).save_pretrained(run.folder("model"))
    with reporter("scoring the best weights") as progress:
        validation = score_records(
            model,
            fitted["val"],
            image_NF=features.images.get("val"),
            texts=features.texts,
            pixels=image_caches.get("val"),
            batch_size=config.data.batch_size,
            progress=progress,
        )
    counts = {"epochs": result.epochs, "steps": result.steps, "skipped_images": records.skipped, "cut_captions": cut}
    run.write_result(run.result | counts | {"val": validation.as_dict()})  # keep earlier scores on test
    run.register_once(
        {"loss": config.loss.name, "model": config.model.label, "seed": config.trainer.seed, "split": "val"}
        | validation.result.metrics
    )
    write_card(config, run, validation)
    return Trained(run=run, validation=validation, plots=draw_run(run))


def count_cut_captions(tokenizer: Tokenizer, records: Sequence[ImageRecord]) -> int:
    """Return the number of captions whose end the text tower does not read, and warn if there are any."""
    captions = [caption for record in records for caption in record.captions]
    places = find_cut(tokenizer, captions)
    if places:
        warnings.warn(
            f"{len(places):,} of {len(captions):,} captions of the {records[0].split} split have more tokens than the "
            f"text tower reads, and their ends are left out; the first is {shorten(captions[places[0]], 60)!r}",
            stacklevel=2,
        )
    return len(places)


def check_sizes(config: DataConfig, splits: dict[str, list[ImageRecord]]) -> None:
    """Raise DataError if a split is too small to train, validate or fill a batch."""
    if len(splits["train"]) < 2:
        raise DataError(
            f"{config.root}: {len(splits['train'])} training image(s): contrastive training needs at least 2"
        )
    if len(splits["val"]) < 2:
        raise DataError(
            f"{config.root}: {len(splits['val'])} validation image(s): selection needs at least 2; set data.hold_out=N "
            "to use training images"
        )
    if config.batch_size > len(splits["train"]):
        raise DataError(
            f"data.batch_size={config.batch_size} is more than the {len(splits['train'])} training images: "
            f"set data.batch_size to at most {len(splits['train'])}"
        )


def write_card(config: Config, run: Run, validation: Evaluation) -> Path:
    """Write the run's README.md, a model card."""
    low, high = validation.result.intervals["rsum"]
    results = {key: round(value, 4) for key, value in validation.result.metrics.items()}
    return run.write_model_card(
        title=f"{run.name}: image-text retrieval",
        summary=(
            f"{config.model.label} trained by clipse with the {config.loss.name} loss on "
            f"{Path(str(config.data.root)).name}. Validation rsum {validation.result.metrics['rsum']:.1f} "
            f"(95 % interval {low:.1f} to {high:.1f}) over {validation.images} images and {validation.captions} "
            f"captions; a random ranking reaches {validation.chance:.1f}. "
            "The weights were selected on that split: score another one with `clipse eval`."
        ),
        results=results,
        usage=(
            "from clipse import Retriever\n\n"
            f'retriever = Retriever.from_pretrained("{run.path.as_posix()}").index("photos/")\n'
            'for hit in retriever.search("a red cup", k=5):\n    print(hit.similarity, hit.path)'
        ),
        tags=["clip", "image-text-retrieval"],
    )
