"""What a training with cross-attention reads before and between its stages: the start's weights, and the contexts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from aaclip.config import Config
from aaclip.data import AnomalyDataset, Record, collate
from aaclip.detector.files import load_trained, read_detector
from aaclip.models import AnomalyModel
from aaclip.models.backbone import choose_adapters, make_preprocess
from aaclip.models.contexts import Contexts, RunningContexts
from aaclip.models.names import normalise_class
from aaclip.models.prompts import PromptSet
from clip_common.backbones import fingerprint
from clip_common.reporting import Progress
from clip_common.tensors import TensorsError, check_fingerprint


def load_start(model: AnomalyModel, start: str, *, config: Config) -> None:
    """Load the trained weights of the run or saved detector that a training starts from.

    Args:
        model: Untrained; modules for cross-attention stay so if the start has none.
        start: A run folder or a saved detector, or the text stage alone.
        config: Of the model.

    Raises:
        ValueError: No such folder, another backbone, other adapters, or cross-attention that this model lacks.
    """
    source = Path(start)
    stored = read_detector(source)
    image = any(name.startswith("image_adapter.") for name in stored.state)
    check_same_adapters(stored.config, config, source=f"start={start}", image=image)
    for what, tower in (("image", model.image_tower), ("text", model.text_tower)):
        check_fingerprint(
            fingerprint(tower),
            stored.fingerprints[what],
            source=f"start={start}",
            what=f"{'an' if what == 'image' else 'a'} {what} tower {stored.config.backbone.name}",
        )
    load_trained(model, stored.state, source=source, start=True)


def check_same_adapters(theirs: Config, ours: Config, *, source: str, image: bool = True) -> None:
    """Raise ValueError if trained adapters would compute something else in this configuration; sizes are not compared.

    Fields that are null, told from the tower, fit anything here, and so does the rank of adapters that are no LoRA.
    Without `image` the heads are not compared either.
    """
    unread = () if ours.adapters.kind == "lora" else ("rank",)
    was, wanted = (
        {f"adapters.{key}": value for key, value in asdict(choose_adapters(config)).items() if key not in unread}
        | {f"heads.{key}": value for key, value in asdict(config.heads).items() if image}
        | {
            "backbone.activation": config.backbone.activation,
            "prompts.learned_tokens": config.prompts.learned_tokens,
        }
        for config in (theirs, ours)
    )
    other = [key for key, value in was.items() if None not in (value, wanted[key]) and value != wanted[key]]
    if other:
        fitting = " ".join(f"{key}={was[key]}" for key in other)
        raise TensorsError(f"{source} was trained with {fitting}, which this configuration changes: set that too")


def make_running_contexts(model: AnomalyModel, records: Sequence[Record], config: Config) -> RunningContexts | None:
    """Return an empty mean context of each class of the training images; None without cross-attention."""
    if model.text_cross_attn is None:
        return None
    spec = model.bundle.image.spec
    return RunningContexts(
        sorted({record.class_name for record in records}),
        patches=(spec.image_size // spec.patch_size) ** 2,
        width=spec.embed_dim,
        over=config.cross_attention.context,
    )


@torch.no_grad()
def read_image_contexts(
    model: AnomalyModel, records: Sequence[Record], config: Config, *, progress: Progress | None = None
) -> dict[str, Tensor]:
    """Return the image context (L, D) of each class over the unaugmented training images, for a run without stage 1.

    Empty if no class embedding attends to one.
    """
    contexts = make_running_contexts(model, records, config)
    if contexts is None or not config.cross_attention.at_test:
        return {}
    contexts = contexts.to(model.device)
    preprocess, size = make_preprocess(model.bundle, config.preprocess), model.bundle.image.spec.image_size
    dataset, done = AnomalyDataset(records, preprocess=preprocess, size=size, seed=0), 0
    for batch in DataLoader(dataset, batch_size=16, collate_fn=collate):
        contexts.take(model.frozen_patches(batch.images_B3HW.to(model.device))[0], batch.class_names)
        done += len(batch.names)
        if progress is not None:
            progress(done, len(dataset))
    return contexts.stored()


def read_text_contexts(model: AnomalyModel, names: Sequence[str], prompts: PromptSet) -> dict[str, Tensor]:
    """Return the text context (N, F) of each class, by its folder's name; empty without cross-attention."""
    if model.image_cross_attn is None:
        return {}
    return {name: model.read_text_context(prompts.list_all(prompts.name_of(name))) for name in names}


def name_contexts(image: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> Contexts | None:
    """Return the contexts of a detector, by class; None if none is used at test."""
    if not image:
        return None
    return Contexts(*({normalise_class(name): context for name, context in one.items()} for one in (image, text)))
