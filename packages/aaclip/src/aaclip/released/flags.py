"""The options of the released train.py, and the configuration field that each one sets.

    aaclip train --dataset MVTec --training_mode few_shot --shot 32 --text_epoch 5 --save_path ckpt/mvtec

An override `section.field=value` on the line wins over a flag. A flag that is not given leaves its field unchanged.
`--save_path` is not a field but the run's folder, see `aaclip.released.training`.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

_SHOWN: dict[str, Any] = {"rich_help_panel": "The released code's flags", "show_default": False}

Dataset = Annotated[str | None, typer.Option("--dataset", help="data.root: the set's folder", **_SHOWN)]
Shot = Annotated[int | None, typer.Option("--shot", help="data.shot, and data.mode=few_shot", **_SHOWN)]
TrainingMode = Annotated[str | None, typer.Option("--training_mode", help="data.mode: few_shot or full_shot", **_SHOWN)]
TextEpoch = Annotated[int | None, typer.Option("--text_epoch", help="stages.text.epochs", **_SHOWN)]
ImageEpoch = Annotated[int | None, typer.Option("--image_epoch", help="stages.image.epochs", **_SHOWN)]
TextBatchSize = Annotated[int | None, typer.Option("--text_batch_size", help="stages.text.batch_size", **_SHOWN)]
ImageBatchSize = Annotated[int | None, typer.Option("--image_batch_size", help="stages.image.batch_size", **_SHOWN)]
TextLr = Annotated[float | None, typer.Option("--text_lr", help="stages.text.lr", **_SHOWN)]
ImageLr = Annotated[float | None, typer.Option("--image_lr", help="stages.image.lr", **_SHOWN)]
TextAdaptUntil = Annotated[int | None, typer.Option("--text_adapt_until", help="adapters.text_blocks", **_SHOWN)]
ImageAdaptUntil = Annotated[int | None, typer.Option("--image_adapt_until", help="adapters.image_blocks", **_SHOWN)]
TextAdaptWeight = Annotated[float | None, typer.Option("--text_adapt_weight", help="adapters.text_weight", **_SHOWN)]
ImageAdaptWeight = Annotated[float | None, typer.Option("--image_adapt_weight", help="adapters.image_weight", **_SHOWN)]
TextNormWeight = Annotated[float | None, typer.Option("--text_norm_weight", help="loss.orthogonal", **_SHOWN)]
Relu = Annotated[bool | None, typer.Option("--relu", help="heads.activation=leaky", **_SHOWN)]
SurgeryUntilLayer = Annotated[
    int | None,
    typer.Option("--surgery_until_layer", help="surgery.blocks plus one: 20 means the last 19", **_SHOWN),
]
ModelName = Annotated[str | None, typer.Option("--model_name", help="backbone.name", **_SHOWN)]
ImgSize = Annotated[int | None, typer.Option("--img_size", help="backbone.image_size", **_SHOWN)]
Seed = Annotated[int | None, typer.Option("--seed", help="trainer.seed", **_SHOWN)]
Criterion = Annotated[str | None, typer.Option("--criterion", hidden=True)]
SavePath = Annotated[
    Path | None, typer.Option("--save_path", help="the run's folder; named again, the run continues", **_SHOWN)
]


def make_overrides(
    *,
    dataset: str | None = None,
    shot: int | None = None,
    training_mode: str | None = None,
    surgery_until_layer: int | None = None,
    relu: bool | None = None,
    criterion: str | None = None,
    **others: str | float | None,
) -> list[str]:
    """Return the flags that were given as overrides of the configuration.

    Args:
        dataset, shot, training_mode, surgery_until_layer, relu, criterion: Flags with a rule of their own.
        others: Flags that set the field of `FIELDS`.

    Raises:
        ValueError: A flag without a meaning here.
    """
    if criterion is not None:
        raise ValueError("--criterion has no meaning here, the loss of a map is always focal and Dice: leave it out")
    overrides = []
    if dataset is not None:
        overrides.append(f"data.root={dataset}")
    if shot is not None:  # the released default is few_shot, so that a shot alone means it; --training_mode wins
        overrides += ["data.mode=few_shot", f"data.shot={shot}"]
    if training_mode is not None:
        overrides.append(f"data.mode={training_mode}")
    if relu:
        overrides.append("heads.activation=leaky")
    if surgery_until_layer is not None:  # the released code counts blocks from -1 to -(N - 1)
        overrides.append(f"surgery.blocks={surgery_until_layer - 1}")
    return overrides + [f"{FIELDS[name]}={value}" for name, value in others.items() if value is not None]


FIELDS = {
    "text_epoch": "stages.text.epochs",
    "image_epoch": "stages.image.epochs",
    "text_batch_size": "stages.text.batch_size",
    "image_batch_size": "stages.image.batch_size",
    "text_lr": "stages.text.lr",
    "image_lr": "stages.image.lr",
    "text_adapt_until": "adapters.text_blocks",
    "image_adapt_until": "adapters.image_blocks",
    "text_adapt_weight": "adapters.text_weight",
    "image_adapt_weight": "adapters.image_weight",
    "text_norm_weight": "loss.orthogonal",
    "model_name": "backbone.name",
    "img_size": "backbone.image_size",
    "seed": "trainer.seed",
}
"""Flag → field that takes its value."""
