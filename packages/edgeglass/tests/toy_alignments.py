"""A small set of the world, encoders of random weights, and settings under which a run takes seconds."""

from pathlib import Path

from helpers.runs import rows
from toy_models import save_audio_encoder, save_text_encoder

from clip_common.config import load_config
from clip_common.synthetic import write_sounds
from edgeglass.config import Config

SMALL = (
    "mrl.width=32",
    "mrl.dims=[16,8]",
    "data.batch_size=16",
    "optim.lr=1e-3",
    "trainer.max_epochs=2",
    "trainer.devices=cpu",
    "trainer.precision=32-true",
)


def prepare(folder: Path) -> Path:
    """Write `world/` (images, captions and sounds), `text/` and `audio/` (encoders) into a folder."""
    write_sounds(folder / "world", train=48, val=12, test=12, size=32)
    save_text_encoder(folder / "text")
    save_audio_encoder(folder / "audio")
    return folder


def settings(parts: Path, folder: Path) -> list[str]:
    """Overrides of a run on what `prepare` wrote, which writes below `folder`; features are shared by all runs."""
    return [
        *SMALL,
        "encoders.vision.name=tiny",
        f"encoders.text.name={parts / 'text'}",
        f"encoders.audio.name={parts / 'audio'}",
        f"data.root={parts / 'world'}",
        f"data.cache_dir={parts / 'cache'}",
        f"runs={folder / 'runs'}",
    ]


def configured(small: list[str], *overrides: str) -> Config:
    return load_config(Config, overrides=[*small, *overrides], package="edgeglass")


def losses(run: Path) -> list[float]:
    return [float(row["train/loss"]) for row in rows(run / "metrics.csv") if row["train/loss"]]
