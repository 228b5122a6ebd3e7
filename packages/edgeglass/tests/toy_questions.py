"""A small set of questions with a language model of random weights, and settings under which a run takes seconds."""

from pathlib import Path

from toy_decoders import save_language_toy

from clip_common.config import load_config
from clip_common.synthetic import write_questions
from edgeglass.config import VlmConfig

SMALL = (
    "prefix.name=tiny",
    "prefix.merge=2",
    "prefix.image_size=32",
    "prefix.projector=mlp2x_gelu",
    "decoder.dtype=float32",
    "decoder.lora.r=4",
    "decoder.lora.alpha=8",
    "trm.width=16",
    "trm.heads=2",
    "data.batch_size=16",
    "answer.max_new_tokens=8",
    "optim.lr=2e-3",
    "trainer.max_epochs=2",
    "trainer.devices=cpu",
    "trainer.precision=32-true",
)


def prepare(folder: Path) -> Path:
    """Write `questions/` and `language/` (a model) into a folder."""
    write_questions(folder / "questions", train=16, val=16, test=16, size=32)
    save_language_toy(folder / "language")
    return folder


def settings(parts: Path, folder: Path) -> list[str]:
    """Overrides of a run on what `prepare` wrote, which writes below `folder`; features are shared by all runs."""
    return [
        *SMALL,
        f"decoder.name={parts / 'language'}",
        f"data.root={parts / 'questions'}",
        f"data.cache_dir={parts / 'cache'}",
        f"runs={folder / 'runs'}",
    ]


def configured(asked: list[str], *overrides: str) -> VlmConfig:
    return load_config(VlmConfig, overrides=[*asked, *overrides], package="edgeglass")
