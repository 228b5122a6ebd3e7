"""The flags of the released train.py, on `aaclip train`: each is an override of a configuration field.

    aaclip train --dataset MVTec --training_mode few_shot --shot 32 --text_epoch 5 --save_path ckpt/mvtec

What stands on the line as `section.field=value` comes after the flags, so that it has the last word. A flag that is not
given leaves its field as it is. `--save_path` is no field: it is the run's folder, see
`aaclip.training.experiment.train`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any

import typer

PANEL = "The released code's flags"


@dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
        name: Without dashes.
        type: Of its value; bool for a flag without one.
        overrides: What it stands for, `{}` for its value.
        note: For `--help`; default: the field.
        less: How much lower the field is than the flag.
        refusal: Why it has no meaning here; None where it has one.
    """

    name: str
    type: type
    overrides: tuple[str, ...] = ()
    note: str = ""
    less: int = 0
    refusal: str | None = None

    @property
    def help(self) -> str:
        return self.note or self.overrides[-1].partition("=")[0]


FLAGS = (
    Flag("dataset", str, ("data.root={}",), note="data.root: the set's folder"),
    # released default: few_shot, so that a shot alone means few; --training_mode comes after it and has its say
    Flag("shot", int, ("data.mode=few_shot", "data.shot={}"), note="data.shot, and data.mode=few_shot"),
    Flag("training_mode", str, ("data.mode={}",), note="data.mode: few_shot or full_shot"),
    Flag("text_epoch", int, ("stages.text.epochs={}",)),
    Flag("image_epoch", int, ("stages.image.epochs={}",)),
    Flag("text_batch_size", int, ("stages.text.batch_size={}",)),
    Flag("image_batch_size", int, ("stages.image.batch_size={}",)),
    Flag("text_lr", float, ("stages.text.lr={}",)),
    Flag("image_lr", float, ("stages.image.lr={}",)),
    Flag("text_adapt_until", int, ("adapters.text_blocks={}",)),
    Flag("image_adapt_until", int, ("adapters.image_blocks={}",)),
    Flag("text_adapt_weight", float, ("adapters.text_weight={}",)),
    Flag("image_adapt_weight", float, ("adapters.image_weight={}",)),
    Flag("text_norm_weight", float, ("loss.orthogonal={}",)),
    Flag("relu", bool, ("heads.activation=relu",), note="heads.activation=relu"),
    # released: blocks -1 to -(N - 1)
    Flag("surgery_until_layer", int, ("surgery.blocks={}",), less=1, note="surgery.blocks and one: 20 is the last 19"),
    Flag("model_name", str, ("backbone.name={}",)),
    Flag("img_size", int, ("backbone.image_size={}",)),
    Flag("seed", int, ("trainer.seed={}",)),
    Flag("criterion", str, refusal="has no meaning here, the loss of a map is focal and Dice always: leave it out"),
)


def make_overrides(given: Mapping[str, Any]) -> list[str]:
    """Flags that were given, as overrides, in the order of `FLAGS`.

    Args:
        given: Name → value.

    Raises:
        ValueError: A flag without a meaning here, or a value that its field cannot have.
    """
    overrides = []
    for flag in FLAGS:
        if flag.name not in given:
            continue
        value = given[flag.name]
        if flag.refusal is not None:
            raise ValueError(f"--{flag.name} {flag.refusal}")
        value = value - flag.less if flag.less else value
        overrides += [template.format(value) for template in flag.overrides]
    return overrides


def with_source_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with every flag as an option of its own; it is called with those that were given as `flags`."""
    own = [one for one in inspect.signature(command).parameters.values() if one.name != "flags"]
    options = [
        inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(flag))
        for flag in FLAGS
    ]

    @wraps(command)
    def accepting(**values: Any) -> None:
        given = {flag.name: value for flag in FLAGS if (value := values.pop(flag.name)) is not None}
        command(**values, flags=given)

    accepting.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    return accepting


def _option(flag: Flag) -> Any:
    hidden = flag.refusal is not None
    info = typer.Option(
        f"--{flag.name}", help="" if hidden else flag.help, rich_help_panel=PANEL, show_default=False, hidden=hidden
    )
    return Annotated[flag.type | None, info]
