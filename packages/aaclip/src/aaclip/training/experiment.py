"""From a configuration to a run folder with a detector in it: both stages, then the image score."""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from aaclip.config import Config
from aaclip.data import (
    AnomalyDataset,
    Augment,
    DataError,
    Record,
    check_masks,
    check_no_overlap,
    collate,
    read_dataset,
    save_list,
    training_records,
)
from aaclip.data.selection import TRAINING_LIST, check_same_images, read_hashes
from aaclip.detector.calibration import Logistic
from aaclip.detector.detector import Detector
from aaclip.models import AnomalyModel
from aaclip.models.backbone import load_backbone, make_preprocess
from aaclip.models.prompts import PromptSet, embed_classes, prompt_set
from aaclip.training.features import FrozenViews
from aaclip.training.modules import ImageStage, StageData, TextStage
from aaclip.training.stages import (
    Stage,
    check_free,
    holds_run,
    list_pending,
    list_stages,
    read_config,
    resume_config,
)
from clip_common.config import load_config, to_yaml
from clip_common.metrics import StreamingCurve
from clip_common.reporting import Progress, Reporter, silent
from clip_common.runs import Run
from clip_common.runs.environment import rank
from clip_common.runs.files import write_text
from clip_common.training import check_trainer, fit, load_weights
from clip_common.training.determinism import seed_everything

MODEL = "model"
"""Phase of the ledger that fits the score and saves the detector, and the folder that it fills."""


@dataclass(frozen=True)
class Trained:
    """What `train` leaves.

    Attributes:
        run: The run folder; `model/` in it is a detector, once no stage is left.
        detector: The same, ready to use; None while a stage is left, and on ranks other than the first.
        images: Images it learned from.
        left: Stages that are still to do.
    """

    run: Run
    detector: Detector | None
    images: int
    left: tuple[str, ...] = ()


def resolve(
    *,
    config: str | None = None,
    overrides: Sequence[str] = (),
    resume: Path | None = None,
    folder: Path | None = None,
) -> Config:
    """The configuration of a new run, or of one to go on with, which keeps its own.

    Args:
        config: Name of a configuration, or a file.
        overrides: `section.field=value` each.
        resume: A run to go on with as it is.
        folder: Where `train` is to make a run, or to go on with one; then its own configuration stands in for `config`
            where that is not given, and the overrides are over it.

    Raises:
        ValueError: An unknown key, a wrong value, no such run, overrides for a run that is resumed, or a second name.
    """
    if resume is not None:
        if config or overrides or folder:
            raise ValueError(
                "--resume keeps the run's own configuration: leave out --config, overrides and other flags"
            )
        return read_config(Run.open(resume))
    begun = folder is not None and holds_run(folder)
    own = folder / "config.yaml" if folder is not None and begun and config is None else config
    settings = load_config(Config, config=own, overrides=overrides, package="aaclip")
    if folder is not None and not begun and settings.name is not None:
        raise ValueError(f"name={settings.name} and --save_path {folder} both say where the run is: give one of them")
    return settings


def train(
    config: Config,
    *,
    resume: Path | None = None,
    folder: Path | None = None,
    stage: Stage = "both",
    reporter: Reporter = silent,
) -> Trained:
    """Train the text adapters, then the image adapters; fit the image score; leave a complete run folder.

    Args:
        config: See `aaclip.config`.
        resume: Go on with this run folder where it stopped. `config` is its configuration, but for stages that were
            not begun yet.
        folder: The run folder itself, in place of one that `config.runs` and `config.name` say: made, or gone on with
            where a run was begun in it.
        stage: What to do now; a run of which a stage is left has no detector yet.
        reporter: Shows progress of what precedes and follows the fits.

    Raises:
        ValueError: One line for anything in the data, the model or the configuration that cannot be used; nothing has
            been written then.
    """
    place = folder if folder is not None and holds_run(folder) else resume
    begun = None if place is None else Run.open(place)
    if begun is not None:
        config = resume_config(begun, config)
    elif folder is not None:
        check_free(folder)
    elif config.name is not None:
        Run.require_new("aaclip", config.name, root=config.runs)
    todo = list_stages(config, stage, begun)
    if begun is not None and not todo and (finished := load_finished(begun, config)):
        return finished
    require_trainer(config.trainer)
    records = read_training_records(config)
    if begun is not None and (begun.path / TRAINING_LIST).exists():
        check_same_images(begun.path / TRAINING_LIST, records)
    bundle = load_backbone(config.backbone)
    seed_everything(config.trainer.seed)
    model = AnomalyModel(bundle, config)
    prompts = prompt_set(config.prompts.set)
    root = Path(str(config.data.root))

    if begun is not None:
        run = begun
    elif folder is not None:  # `create` makes root/group/name
        run = Run.create(
            "aaclip", config_yaml=to_yaml(config), name=folder.name, group=folder.parent.name, root=folder.parent.parent
        )
    else:
        label = f"{root.resolve().name}-{config.backbone.name}-s{config.trainer.seed}".replace("/", "-")
        run = Run.create("aaclip", config_yaml=to_yaml(config), name=config.name, label=label, root=config.runs)
    with run.locked():
        if begun is not None:
            run = mark_resumed(begun, config)
        if rank() == 0:
            run.ledger.start(MODEL)  # a detector of an earlier call is not that of this run any more
            shutil.rmtree(run.path / MODEL, ignore_errors=True)
            if not (run.path / TRAINING_LIST).exists():
                save_list(records, run.path / TRAINING_LIST, root=root)
        train_text(model, records, config, prompts, run, resume=begun is not None, reporter=reporter)
        classes = embed_training_classes(model, records, config, prompts)
        if stage != "text" or run.ledger.done("image"):
            train_image(model, records, config, classes, run, resume=begun is not None)
        if rank() != 0:
            return Trained(run, None, len(records))
        if left := list_pending(config, run):
            return Trained(run, None, len(records), tuple(left))
        detector = Detector(model, config, classes={prompts.name_of(name): text for name, text in classes.items()})
        with reporter("fitting the score") as progress:
            fit_scores(detector, records, progress=progress)
        detector.save_pretrained(run.folder(MODEL))
        run.write_result(run.result | {"images": len(records), "classes": sorted(classes)})
        run.ledger.finish(MODEL)
    return Trained(run, detector, len(records))


def load_finished(run: Run, config: Config) -> Trained | None:
    """A run in which nothing that was asked for is left to do; None where its detector is not there."""
    left = tuple(list_pending(config, run))
    if not left and not (run.ledger.done(MODEL) and (run.path / MODEL).is_dir()):
        return None
    images = len(read_hashes(run.path / TRAINING_LIST))
    return Trained(run, None if left or rank() != 0 else Detector.from_pretrained(run.path), images, left)


def mark_resumed(run: Run, config: Config) -> Run:
    """Note in a run that it is gone on with, and with which configuration."""
    own = read_config(run)
    run = Run.resume(run.path.resolve(), config_yaml=to_yaml(own))
    if rank() == 0 and config != own:
        write_text(run.path / "config.yaml", to_yaml(config))
    return run


def read_training_records(config: Config) -> list[Record]:
    """What is trained on, checked: masks are there, and nothing of it is in a set that will be tested.

    Raises:
        DataError: One line.
    """
    if config.data.root is None:
        raise DataError("data.root=… is needed: a folder of labelled images, see `aaclip data check`")
    dataset = read_dataset(Path(config.data.root), format=config.data.format, classes=config.data.classes)
    records = training_records(dataset, config.data, seed=config.trainer.seed)
    check_masks(records)
    for other in config.data.test_roots:
        check_no_overlap(records, read_dataset(Path(other)).of(split="test"))
    return records


def make_dataset(model: AnomalyModel, records: Sequence[Record], config: Config, *, colour: bool) -> AnomalyDataset:
    """Augmented samples."""
    size = model.bundle.image.spec.image_size
    return AnomalyDataset(
        records,
        preprocess=make_preprocess(model.bundle, config.preprocess),
        size=size,
        seed=config.trainer.seed,
        augment=Augment(config.augment, size=size, colour=colour),
    )


def train_text(
    model: AnomalyModel,
    records: Sequence[Record],
    config: Config,
    prompts: PromptSet,
    run: Run,
    *,
    resume: bool,
    reporter: Reporter,
) -> None:
    """Stage 1; afterwards the model holds its last weights."""
    stage = config.stages.text
    if stage.epochs == 0:
        return
    dataset: AnomalyDataset | FrozenViews = make_dataset(model, records, config, colour=False)
    views = None
    if stage.cache_features and not run.ledger.done("text"):
        assert isinstance(dataset, AnomalyDataset)
        with reporter("frozen features of the training images") as progress:
            views = FrozenViews(Path(config.runs) / "cache" / "aaclip", dataset, model, config, progress=progress)
        dataset = views
    module = TextStage(model, config, prompts, views=views)
    data = StageData(dataset, batch_size=stage.batch_size, config=config)
    trainer = replace(config.trainer, max_epochs=stage.epochs)
    result = fit(module, data, trainer, run, monitor="train/loss", mode="min", phase="text", resume=resume)
    load_weights(module, result.last)


def train_image(
    model: AnomalyModel,
    records: Sequence[Record],
    config: Config,
    classes: Mapping[str, Tensor],
    run: Run,
    *,
    resume: bool,
) -> None:
    """Stage 2; afterwards the model holds its last weights."""
    stage = config.stages.image
    if stage.epochs == 0:
        return
    module = ImageStage(model, config, dict(classes))
    data = StageData(make_dataset(model, records, config, colour=True), batch_size=stage.batch_size, config=config)
    trainer = replace(config.trainer, max_epochs=stage.epochs)
    result = fit(module, data, trainer, run, monitor="train/loss", mode="min", phase="image", resume=resume)
    load_weights(module, result.last)


@torch.no_grad()
def embed_training_classes(
    model: AnomalyModel, records: Sequence[Record], config: Config, prompts: PromptSet
) -> dict[str, Tensor]:
    """(D, 2) embedding of each class of the training set, by its folder's name, from the trained text tower."""
    model.eval()
    names = sorted({record.class_name for record in records})
    called = [prompts.name_of(name) for name in names]
    text = embed_classes(model.encode_text, called, prompts, renormalise=config.prompts.renormalise)
    return dict(zip(names, text.float(), strict=True))


def fit_scores(detector: Detector, records: Sequence[Record], *, progress: Progress | None = None) -> None:
    """Fit the image score and the border of masks (the pixel threshold of best F1) on the unaugmented training images.

    Where all images are of one kind, or nothing was learned, the detector keeps what it has unfitted; the latter warns.
    """
    dataset = AnomalyDataset(records, preprocess=detector.preprocess, size=detector.size, seed=0)
    columns: list[list[NDArray[Any]]] = [[], [], []]
    pixels = StreamingCurve()
    for batch in DataLoader(dataset, batch_size=16, collate_fn=collate):
        text_BD2 = torch.stack([detector.class_embedding(name) for name in batch.class_names])
        scores = detector.scores(batch.images_B3HW, text_BD2)
        pixels.update(scores.maps_BSS.cpu(), batch.masks_BHW)
        values = (scores.classification_B, scores.top_B, batch.anomalous_B)
        for column, values_B in zip(columns, values, strict=True):
            column.append(values_B.cpu().numpy())
        if progress is not None:
            progress(sum(map(len, columns[0])), len(dataset))
    classification, top, anomalous = (np.concatenate(column) for column in columns)
    if not anomalous.any() or anomalous.all():
        return
    detector.border = pixels.compute().threshold
    try:
        detector.score = Logistic.fit(classification, top, anomalous)
    except ValueError as error:
        warnings.warn(f"image score not fitted: {error}", stacklevel=2)
