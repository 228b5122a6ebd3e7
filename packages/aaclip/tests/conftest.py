"""Shared by aaclip's tests: a small CLIP with random weights, drawn parts, runs of seconds, the command line."""

import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
from helpers.commands import call

ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 4},
}


@pytest.fixture(autouse=True)
def detectors_on_the_cpu(request, monkeypatch):
    """On a machine with a GPU, only the tests marked `gpu` compare with it."""
    if "gpu" not in request.keywords:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(scope="session")
def bundle():
    """A CLIP of 8 image blocks and 4 text blocks, 4 x 4 patches."""
    from clip_common.backbones import load_clip

    made = load_clip("small", pretrained="random", model_config=ARCHITECTURE, seed=0)
    made.image_tower.eval()
    made.text_tower.eval()
    return made


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory, bundle) -> Path:
    """The same CLIP, saved."""
    from clip_common.backbones import save_bundle

    folder = tmp_path_factory.mktemp("clip") / "small"
    save_bundle(bundle, folder)
    return folder


@pytest.fixture
def other_clip(tmp_path) -> Path:
    """One of the same shape and other weights, saved."""
    from clip_common.backbones import load_clip, save_bundle

    save_bundle(load_clip("small", pretrained="random", model_config=ARCHITECTURE, seed=1), tmp_path / "other")
    return tmp_path / "other"


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """Two kinds: 2 flawless training images, 2 flawless and 6 damaged test images each."""
    from clip_common.synthetic import write_mvtec

    return write_mvtec(
        tmp_path_factory.mktemp("data") / "parts", kinds=("mug", "star"), train=2, good=2, damaged=1, size=48
    )


@pytest.fixture(scope="session")
def other_parts(tmp_path_factory) -> Path:
    """A set of two kinds that no run has seen; 4 flawless and 6 damaged images each."""
    from clip_common.synthetic import write_mvtec

    folder = tmp_path_factory.mktemp("other") / "teile, zwei"
    return write_mvtec(folder, kinds=("bell", "mug"), train=0, good=4, damaged=1, size=48, seed=7)


def backbone(clip: Path) -> list[str]:
    """Overrides that name a saved CLIP."""
    kept = [f"backbone.{name}=null" for name in ("pretrained", "activation", "image_size")]
    return [f"backbone.name=local-dir:{clip}", *kept, "prompts.set=compact"]


def overrides(parts: Path, clip: Path, folder: Path) -> list[str]:
    """Overrides of a run that takes a second and writes below `folder`."""
    return [
        f"data.root={parts}",
        f"runs={folder}",
        *backbone(clip),
        "stages.text.epochs=2",
        "stages.text.batch_size=8",
        "stages.text.lr=1e-3",
        "stages.image.epochs=2",
        "stages.image.batch_size=8",
    ]


@pytest.fixture
def small(parts, clip_folder, tmp_path) -> list[str]:
    """Overrides of a run that takes a second and writes below `tmp_path`."""
    return overrides(parts, clip_folder, tmp_path / "runs")


@pytest.fixture(scope="session")
def trained(parts, clip_folder, tmp_path_factory):
    """`trained("surgery.axis=batch", …)` -> the run, trained once in a session."""
    from aaclip.config import Config
    from aaclip.training.experiment import train
    from clip_common.config import load_config

    folder = tmp_path_factory.mktemp("trained")
    made: dict[tuple[str, ...], Path] = {}

    def get(*more: str) -> Path:
        if more not in made:
            settings = [*overrides(parts, clip_folder, folder), f"name=run-{len(made)}", *more]
            with warnings.catch_warnings():  # a random CLIP need not find a defect
                warnings.filterwarnings("ignore", "image score not fitted")
                made[more] = train(load_config(Config, overrides=settings)).run.path
        return made[more]

    return get


@pytest.fixture(scope="session")
def looped(parts, clip_folder, tmp_path_factory):
    """`looped("feedback.loops=3", …)` -> the run of two short loops with these overrides, trained once in a session."""
    from aaclip.training.feedback import feedback, resolve

    short = ("feedback.text_epochs=[2,1]", "feedback.image_epochs=[2,1]", "feedback.loops=2", "feedback.held_out=0.4")
    folder = tmp_path_factory.mktemp("looped")
    made = {}

    def get(*more: str):
        if more not in made:
            settings = [*overrides(parts, clip_folder, folder), *short, f"name=loops-{len(made)}", *more]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "image score not fitted")
                made[more] = feedback(resolve(overrides=settings)).run.path
        return made[more]

    return get


@pytest.fixture
def config(clip_folder):
    """Of a detector on the small CLIP."""
    from aaclip.config import Config
    from clip_common.config import load_config

    return load_config(Config, overrides=backbone(clip_folder))


@pytest.fixture
def detector(bundle, config):
    """Untrained adapters, moved at random, and a score that is neither 0 nor 1 for any picture."""
    import torch

    from aaclip.detector.calibration import Logistic
    from aaclip.detector.detector import Detector
    from aaclip.models.backbone import make_model

    torch.manual_seed(0)
    model = make_model(bundle, config)
    return Detector(model, config, score=Logistic(a=20.0, b=0.3, c=0.1, images=8))


@pytest.fixture
def saved(detector, tmp_path) -> Path:
    """The same, saved with the embedding of "mug"; without a threshold."""
    detector.class_embedding("mug")
    return detector.save_pretrained(tmp_path / "saved")


@pytest.fixture
def aaclip(capsys):
    """`aaclip("test", …)` -> (exit code, what it printed, what it said on stderr)."""
    from aaclip.cli.main import app

    return partial(call, app, capsys)


@pytest.fixture
def photos(parts, tmp_path) -> Path:
    """Three drawn mugs, flat in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, file in enumerate(sorted((parts / "mug" / "test").rglob("*.png"))[:3]):
        shutil.copy(file, folder / f"{number}.png")
    return folder
