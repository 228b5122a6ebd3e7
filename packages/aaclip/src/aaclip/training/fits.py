"""One stage of a training at a time: its data, its fit, and what the next stage needs from it.

Shapes: C classes, L patches, N tokens of a class's prompts, D shared width, F width of the text tower.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from aaclip.config import Config, ImageStageConfig, TextStageConfig
from aaclip.data import AnomalyDataset, Augment, Record
from aaclip.models import AnomalyModel
from aaclip.models.backbone import make_preprocess
from aaclip.models.contexts import Contexts
from aaclip.models.prompts import PromptSet, embed_classes
from aaclip.training.contexts import make_running_contexts, read_image_contexts
from aaclip.training.features import FrozenViews
from aaclip.training.joint import JointStage
from aaclip.training.modules import ImageStage, StageData, TextStage
from aaclip.training.stages import JOINT, Stage
from clip_common.devices import pick_device
from clip_common.reporting import Reporter
from clip_common.runs import Run
from clip_common.training import fit, load_weights


@dataclass(frozen=True)
class Job:
    """Everything a run needs, loaded and checked before anything is written (`prepare`).

    Attributes:
        config: Of the run.
        stage: What to do now.
        records: Images to learn from.
        model: Untrained.
        prompts: States and templates.
    """

    config: Config
    stage: Stage
    records: list[Record]
    model: AnomalyModel
    prompts: PromptSet


def make_dataset(model: AnomalyModel, records: Sequence[Record], config: Config, *, colour: bool) -> AnomalyDataset:
    """Return augmented samples; `colour` changes colours too."""
    size = model.bundle.image.spec.image_size
    preprocess = make_preprocess(model.bundle, config.preprocess)
    return AnomalyDataset(
        records,
        preprocess=preprocess,
        size=size,
        seed=config.trainer.seed,
        augment=Augment(config.augment, size=size, colour=colour, mean=preprocess.mean),
    )


def train_text(
    job: Job,
    run: Run,
    *,
    resumed: bool,
    reporter: Reporter,
    phase: str = "text",
    attends: bool = True,
    make: Callable[..., TextStage] = TextStage,
) -> dict[str, Tensor]:
    """Run stage 1; afterwards the model holds its last weights.

    Args:
        job: Its model is trained.
        run: Gets checkpoints and metrics.
        resumed: Continue from the checkpoints.
        reporter: Shows progress of what precedes the fit.
        phase: Name of the fit in the ledger.
        attends: Texts attend to image contexts, if the model has cross-attention.
        make: The LightningModule; it takes the arguments of `TextStage`.

    Returns:
        Image context (L, D) of each class, by its folder's name; empty if no class embedding attends to one.
    """
    config, stage = job.config, job.config.stages.text
    if stage.epochs == 0:
        with reporter("image contexts of the classes") as progress:
            return read_image_contexts(job.model, job.records, config, progress=progress)
    dataset = make_dataset(job.model, job.records, config, colour=False)
    views = None
    if stage.cache_features and not run.ledger.done(phase):
        folder = Path(config.runs) / "cache" / "aaclip"
        with reporter("frozen features of the training images") as progress:
            views = FrozenViews(folder, dataset, job.model, views=stage.cache_features, progress=progress)
    contexts = make_running_contexts(job.model, job.records, config) if attends else None
    module = make(job.model, stage, config.loss, prompts=job.prompts, views=views, contexts=contexts)
    fit_stage(module, dataset if views is None else views, stage, config, run, phase=phase, resumed=resumed)
    return {} if contexts is None or not config.cross_attention.at_test else contexts.stored()


def train_image(
    job: Job,
    classes: Mapping[str, Tensor],
    contexts: Mapping[str, Tensor],
    run: Run,
    *,
    resumed: bool,
    phase: str = "image",
    make: Callable[..., ImageStage] = ImageStage,
) -> None:
    """Run stage 2 with embeddings and text contexts of the classes; afterwards the model holds its last weights.

    Args:
        job: Its model is trained.
        classes: (D, 2) embedding of each class, by its folder's name.
        contexts: (N, F) text context of each class; empty: images attend to none.
        run: Gets checkpoints and metrics.
        resumed: Continue from the checkpoints.
        phase: Name of the fit in the ledger.
        make: The LightningModule; it takes the arguments of `ImageStage`.
    """
    config, stage = job.config, job.config.stages.image
    if stage.epochs == 0:
        return
    module = make(job.model, stage, config.loss, classes=classes, contexts=contexts)
    dataset = make_dataset(job.model, job.records, config, colour=True)
    fit_stage(module, dataset, stage, config, run, phase=phase, resumed=resumed)


def train_joint(job: Job, run: Run, *, resumed: bool) -> None:
    """Train both stages at once; see `train_image` for the arguments."""
    config, stages = job.config, job.config.stages
    module = JointStage(job.model, stages, config.loss, prompts=job.prompts)
    dataset = make_dataset(job.model, job.records, config, colour=True)
    fit_stage(module, dataset, stages.image, config, run, phase=JOINT, resumed=resumed)


def fit_stage(
    module: TextStage | ImageStage | JointStage,
    dataset: AnomalyDataset | FrozenViews,
    stage: TextStageConfig | ImageStageConfig,
    config: Config,
    run: Run,
    *,
    phase: str,
    resumed: bool,
) -> None:
    """Fit a stage; afterwards its model holds the last weights, on the device of work outside the Trainer."""
    seed, workers = config.trainer.seed, config.data.workers
    data = StageData(dataset, batch_size=stage.batch_size, seed=seed, workers=workers, drop_last=config.data.drop_last)
    trainer = replace(config.trainer, max_epochs=stage.epochs)
    result = fit(module, data, trainer, run, monitor="train/loss", mode="min", phase=phase, resume=resumed)
    load_weights(module, result.last)
    module.model.to(pick_device(config.trainer.devices))  # the Trainer left it on the CPU


@torch.no_grad()
def embed_training_classes(job: Job, contexts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the (D, 2) embedding of each class of the training set, by its folder's name.

    Args:
        job: Its model is set to eval mode.
        contexts: Image context that the prompts of a class attend to; empty: none.
    """
    job.model.eval()
    names = sorted({record.class_name for record in job.records})
    called = [job.prompts.name_of(name) for name in names]
    known = Contexts(image=dict(contexts))  # batches of few steps may never have shown a class
    contexts_CLD = torch.stack([known.image_of(name) for name in names]) if contexts else None
    text_CD2 = embed_classes(partial(job.model.encode_text, contexts_GLD=contexts_CLD), called, job.prompts)
    return dict(zip(names, text_CD2.float(), strict=True))
