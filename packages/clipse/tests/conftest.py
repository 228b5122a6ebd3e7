"""Shared by clipse's tests: a small set of drawn scenes, and settings under which a run takes seconds."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

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


@pytest.fixture
def small(scenes, tmp_path) -> list[str]:
    """Overrides of a run that takes seconds and writes below `tmp_path`."""
    places = [f"data.root={scenes}", f"runs={tmp_path / 'runs'}", f"results={tmp_path / 'results'}"]
    return [*SMALL, *places]


@pytest.fixture
def clipse(capsys):
    """`clipse("train", …)` -> (exit code, what it printed, what it said on stderr)."""
    from clip_common import cli
    from clipse.cli import app

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(app, [str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call
