"""Every command that takes a run refuses one of another package in one line, and leaves it as it was."""

import importlib
from pathlib import Path

import pytest
from helpers.commands import call, refused

from clip_common.runs import Run

VERBS = {
    "aaclip": [
        ["train", "--resume", "RUN"],
        ["test", "RUN", "set"],
        ["calibrate", "RUN", "photo.png", "--name", "nut"],
        ["remember", "RUN", "photo.png", "--name", "nut"],
        ["predict", "RUN", "photo.png", "--name", "nut"],
    ],
    "clipse": [["train", "--resume", "RUN"], ["eval", "RUN"], ["eval", "tiny", "--against", "RUN"]],
    "edgeglass": [
        ["align", "--resume", "RUN"],
        ["eval", "RUN"],
        ["embed", "RUN", "set", "--out", "index"],
        ["calibrate", "RUN", "index", "--absent", "absent.txt"],
        ["export", "RUN", "exported"],
    ],
    "videoclip": [
        ["train", "--resume", "RUN"],
        ["cv", "--resume", "RUN"],
        ["test", "RUN"],
        ["predict", "RUN", "walk.mp4"],
        ["overlay", "RUN"],
    ],
}


@pytest.fixture
def foreign(tmp_path, monkeypatch) -> Path:
    """A run of the package `toy`, and what else the commands name."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("photo.png")
    Path("walk.mp4").write_bytes(b"")
    Path("absent.txt").write_text("a purple cow\n")
    folder = Path("set/nut/train/good")
    folder.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder / "0.png")
    return Run.create("toy", config_yaml="levels: 3\n", name="first").path


@pytest.mark.parametrize(
    ("package", "words"),
    [(package, words) for package, lines in VERBS.items() for words in lines],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_run_of_another_package_is_refused_in_one_line(package, words, foreign, capsys):
    app = importlib.import_module(f"{package}.cli.main").app
    before = sorted(foreign.rglob("*"))
    result = call(app, capsys, *(str(foreign) if word == "RUN" else word for word in words))
    refused(result, "toy")
    assert sorted(foreign.rglob("*")) == before
    assert not Path("index").exists()
    assert not Path("exported").exists()
