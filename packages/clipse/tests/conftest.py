"""Shared by clipse's tests: a small set of drawn scenes, and settings under which a run takes seconds."""

from functools import partial
from pathlib import Path

import pytest
from helpers.commands import call

SMALL = [
    "model.architecture={embed_dim: 32,"
    " vision_cfg: {image_size: 32, patch_size: 16, width: 32, layers: 2, head_width: 16},"
    " text_cfg: {context_length: 77, vocab_size: 49408, width: 32, heads: 2, layers: 2}}",
    "model.pretrained=random",
    "data.batch_size=16",
    "data.augment=false",
    "optim.lr=1e-3",
    "trainer.max_epochs=2",
]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A Flickr8k folder of 48 training, 16 validation and 16 test scenes."""
    from clip_common.synthetic import write_flickr8k

    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_flickr8k(folder, train=48, val=16, test=16, size=32)
    return folder


def settings(scenes: Path, folder: Path) -> list[str]:
    """Overrides of a run that takes seconds and writes below `folder`."""
    return [*SMALL, f"data.root={scenes}", f"runs={folder / 'runs'}", f"results={folder / 'results'}"]


@pytest.fixture
def small(scenes, tmp_path) -> list[str]:
    """Overrides of a run that takes seconds and writes below `tmp_path`."""
    return settings(scenes, tmp_path)


@pytest.fixture(scope="session")
def trained(scenes, tmp_path_factory):
    """`trained("loss.name=siglip", …)` -> a run of one epoch with these overrides, trained once in a session."""
    from clip_common.config import load_config
    from clipse import Config, train

    folder = tmp_path_factory.mktemp("trained")
    made: dict[tuple[str, ...], Path] = {}

    def get(*overrides: str) -> Path:
        if overrides not in made:
            name = f"name=run-{len(made)}"
            all_of_it = [*settings(scenes, folder), "trainer.max_epochs=1", *overrides, name]
            made[overrides] = train(load_config(Config, overrides=all_of_it, package="clipse")).run.path
        return made[overrides]

    return get


@pytest.fixture
def clipse(capsys):
    """`clipse("train", …)` -> (exit code, what it printed, what it said on stderr)."""
    from clipse.cli.main import app

    return partial(call, app, capsys)
