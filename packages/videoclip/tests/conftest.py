"""Shared by videoclip's tests: a small set of walking figures, and settings under which a run takes a second."""

from functools import partial
from pathlib import Path

import pytest
from helpers.commands import call

SMALL = [
    "data.size=32",
    "data.frames=4",
    "data.batch_size=8",
    "model.clip_feature_dim=16",
    "model.clip_embed_dim=8",
    "optim.lr=1e-3",
    "trainer.max_epochs=1",
    "trainer.precision=32-true",
    "trainer.devices=cpu",
]


@pytest.fixture(scope="session")
def walks(tmp_path_factory) -> Path:
    """15 people, 5 of each class, with two clips each, dealt to 5 folds: 9 train, 3 validate, 3 are tested."""
    from clip_common.synthetic import write_walking

    folder = tmp_path_factory.mktemp("data") / "walks"
    return write_walking(folder, subjects=15, clips_per_subject=2, size=32, fps=8)


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Folder of the clips that the session's tests decode."""
    return tmp_path_factory.mktemp("cache")


def settings(walks: Path, cache: Path, folder: Path) -> list[str]:
    """Overrides of a run that takes a second and writes below `folder`."""
    return [*SMALL, f"data.root={walks}", f"data.cache_dir={cache}", f"runs={folder / 'runs'}"]


def without_pictures(patch: pytest.MonkeyPatch) -> None:
    """Draw nothing: pictures are most of what a tiny run costs."""
    for place in ("training.experiment.draw_training", "scoring.score.draw_scores"):
        patch.setattr(f"videoclip.{place}", lambda *arguments, **keywords: [])
    for place in ("series.crossval.draw_folds", "series.ablation.draw_ablation"):
        patch.setattr(f"videoclip.{place}", lambda first, path, **keywords: path)


@pytest.fixture
def pictures() -> None:
    """Request this fixture in a test whose pictures matter."""


@pytest.fixture
def small(walks, cache, tmp_path, request, monkeypatch) -> list[str]:
    """Overrides of a run that takes a second and writes below `tmp_path`."""
    if "pictures" not in request.fixturenames:
        without_pictures(monkeypatch)
    return settings(walks, cache, tmp_path)


@pytest.fixture(scope="session")
def trained(walks, cache, tmp_path_factory):
    """`trained("model.map_guided=true", …)` -> the folder of a run with these overrides, trained once in a session."""
    from clip_common.config import load_config
    from videoclip import Config, train

    folder = tmp_path_factory.mktemp("trained")
    made: dict[tuple[str, ...], Path] = {}

    def get(*overrides: str) -> Path:
        if overrides not in made:
            all_of_it = [*settings(walks, cache, folder), *overrides, f"name=run-{len(made)}"]
            with pytest.MonkeyPatch.context() as patch:
                without_pictures(patch)
                made[overrides] = train(load_config(Config, overrides=all_of_it)).run.path
        return made[overrides]

    return get


@pytest.fixture
def videoclip(capsys):
    """`videoclip("train", …)` -> (exit code, what it printed, what it said on stderr)."""

    from videoclip.cli.main import app

    return partial(call, app, capsys)
