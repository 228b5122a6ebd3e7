"""The options of the fork's training scripts with cross-attention and loops, and the field that each one sets.

    aaclip feedback --dataset mvtec/ --num_feedback_loops 3 --loop1_text_epoch 5 --cross_attn_heads 8

They come beside those of the released code (`aaclip.released.flags`). An override `section.field=value` wins.
"""

from typing import Annotated, Any

import typer

_SHOWN: dict[str, Any] = {"rich_help_panel": "The fork's flags", "show_default": False}
Whole = int | None
Real = float | None


def _flag(name: str, sets: str) -> Any:
    return typer.Option(f"--{name}", help=sets, **_SHOWN)


Mode = Annotated[str | None, _flag("mode", "feedback.freeze: feedback, freeze_adapters or variant_b")]
NumFeedbackLoops = Annotated[Whole, _flag("num_feedback_loops", "feedback.loops")]
Loop1TextEpoch = Annotated[Whole, _flag("loop1_text_epoch", "feedback.text_epochs, the first number")]
Loop2TextEpoch = Annotated[Whole, _flag("loop2_text_epoch", "the second")]
Loop3TextEpoch = Annotated[Whole, _flag("loop3_text_epoch", "the third")]
Loop1ImageEpoch = Annotated[Whole, _flag("loop1_image_epoch", "feedback.image_epochs, the first number")]
Loop2ImageEpoch = Annotated[Whole, _flag("loop2_image_epoch", "the second")]
Loop3ImageEpoch = Annotated[Whole, _flag("loop3_image_epoch", "the third")]
TextEpochsPerLoop = Annotated[Whole, _flag("text_epochs_per_loop", "feedback.text_epochs, the same for all")]
ImageEpochsPerLoop = Annotated[Whole, _flag("image_epochs_per_loop", "feedback.image_epochs, the same for all")]
EpochsDecayRate = Annotated[Real, _flag("epochs_decay_rate", "feedback.epochs_decay")]
LrDecayPerLoop = Annotated[Real, _flag("lr_decay_per_loop", "feedback.lr_decay")]
WarmupEpochs = Annotated[Real, _flag("warmup_epochs", "feedback.warmup_epochs")]
CrossAttnStartLoop = Annotated[Whole, _flag("cross_attn_start_loop", "feedback.cross_attention_start_loop")]
CrossAttnHeads = Annotated[Whole, _flag("cross_attn_heads", "cross_attention.heads")]
CrossAttnDropout = Annotated[Real, _flag("cross_attn_dropout", "cross_attention.dropout")]
PlateauThreshold = Annotated[Real, _flag("plateau_threshold", "feedback.plateau_threshold")]
PlateauPatience = Annotated[Whole, _flag("plateau_patience", "feedback.plateau_patience")]
GradClip = Annotated[Real, _flag("grad_clip", "trainer.grad_clip; 0 is none")]
LoadBaseTextAdapter = Annotated[str | None, typer.Option("--load_base_text_adapter", hidden=True)]
LoadBaseImageAdapter = Annotated[str | None, typer.Option("--load_base_image_adapter", hidden=True)]

MODES = {"feedback": "none", "freeze_adapters": "adapters", "variant_b": "variant_b"}
FIELDS = {
    "num_feedback_loops": "feedback.loops",
    "epochs_decay_rate": "feedback.epochs_decay",
    "lr_decay_per_loop": "feedback.lr_decay",
    "warmup_epochs": "feedback.warmup_epochs",
    "cross_attn_start_loop": "feedback.cross_attention_start_loop",
    "cross_attn_heads": "cross_attention.heads",
    "cross_attn_dropout": "cross_attention.dropout",
    "plateau_threshold": "feedback.plateau_threshold",
    "plateau_patience": "feedback.plateau_patience",
}
"""Flag → field that takes its value."""
EPOCHS = {"text": (5, 3, 2), "image": (20, 10, 5)}
"""The fork's epochs of the first three loops."""


def make_fork_overrides(
    *,
    mode: str | None = None,
    grad_clip: float | None = None,
    load_base_text_adapter: str | None = None,
    load_base_image_adapter: str | None = None,
    **others: float | None,
) -> list[str]:
    """Return the flags that were given as overrides of the configuration.

    Args:
        mode, grad_clip, load_base_text_adapter, load_base_image_adapter: Flags with a rule of their own.
        others: Epochs of loops, and flags that set the field of `FIELDS`.

    Raises:
        ValueError: A flag that another command stands for, or two that contradict each other.
    """
    if load_base_text_adapter is not None or load_base_image_adapter is not None:
        raise ValueError(
            "--load_base_text_adapter and --load_base_image_adapter: turn the two files into a detector with aaclip "
            "import FOLDER DETECTOR, and name it with start=DETECTOR"
        )
    overrides = []
    if mode is not None:
        if mode not in MODES:
            instead = {"base": "aaclip train", "cross_attention": "aaclip train cross_attention.enabled=true"}.get(mode)
            advice = f"use {instead}" if instead else f"expected one of {', '.join(MODES)}"
            raise ValueError(f"--mode {mode} is no training with loops: {advice}")
        overrides.append(f"feedback.freeze={MODES[mode]}")
    if grad_clip is not None:
        overrides.append(f"trainer.grad_clip={grad_clip or 'null'}")
    for stage, usual in EPOCHS.items():
        given = [others.pop(f"loop{loop}_{stage}_epoch", None) for loop in (1, 2, 3)]
        same = others.pop(f"{stage}_epochs_per_loop", None)
        if same is not None and any(one is not None for one in given):
            raise ValueError(f"--{stage}_epochs_per_loop and --loop1_{stage}_epoch both set feedback.{stage}_epochs")
        if same is not None:
            overrides.append(f"feedback.{stage}_epochs=[{same}]")
        elif any(one is not None for one in given):
            epochs = [default if one is None else one for one, default in zip(given, usual, strict=True)]
            overrides.append(f"feedback.{stage}_epochs={epochs}")
    return overrides + [f"{FIELDS[name]}={value}" for name, value in others.items() if value is not None]
