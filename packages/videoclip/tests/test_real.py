"""Real footage, where it is: people who move, trained on and tested; a scene and its masks, as a map."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.real import real_data
from PIL import Image

from videoclip.config import DataConfig
from videoclip.data import ClipRecord, read_clips, write_manifest
from videoclip.data.decoding import probe

pytestmark = pytest.mark.real

TINY = [
    "data.size=64",
    "data.folds=3",
    "data.batch_size=8",
    "model.clip_feature_dim=16",
    "model.clip_embed_dim=8",
    "trainer.precision=32-true",
    "trainer.devices=cpu",
]


def seconds_of(video: Path, **known) -> list[ClipRecord]:
    """A record for each whole second of a video."""
    return [
        ClipRecord(f"{video.stem}_{second}", video=video, start_s=second, end_s=second + 1, **known)
        for second in range(int(probe(video).seconds))
    ]


@pytest.fixture
def actions(tmp_path) -> Path:
    """NUMBER_M.avi and NUMBER_F.avi: a subject each, of two classes, a clip a second."""
    videos = sorted(real_data("video/actions").glob("*.avi"))
    records = [
        clip
        for video in videos
        for clip in seconds_of(video, subject_id=video.stem[:3], label="MF".index(video.stem[-1]))
    ]
    assert len(records) == 3 * len(videos) > 0
    return write_manifest(records, tmp_path / "actions.csv")


@pytest.fixture
def bear(tmp_path) -> Path:
    """Frames with a mask each, as a map of the whole scene."""
    scene = real_data("video/bear")
    records = seconds_of(scene, subject_id="bear", map=scene / "ground-truth", spans="video")
    return write_manifest(records, tmp_path / "bear.csv")


def succeeded(answer: tuple[int, str, str]) -> str:
    code, printed, error = answer
    assert code == 0, error
    return printed


def test_real_clips_are_checked_trained_on_tested_and_answered(videoclip, actions, tmp_path):
    checked = succeeded(videoclip("data", "check", actions, "data.folds=3", "data.size=64", "model.model_class_num=2"))
    assert "every clip and every map can be read" in " ".join(checked.split())
    overrides = [*TINY, f"data.root={actions}", f"runs={tmp_path / 'runs'}", "name=actions"]
    succeeded(
        videoclip(
            *overrides, "model.model_class_num=2", "model.map_guided=true", "trainer.max_epochs=2", "optim.lr=1e-3"
        )
    )
    run = tmp_path / "runs" / "videoclip" / "actions"
    succeeded(videoclip("test", run))
    found = json.loads((run / "result.json").read_text())
    for scores in (found["val"], found["test"]):
        assert scores["clips"] == 3 * scores["subjects"]
        assert scores["clips_with_map"] == 0  # nobody watched them: nothing to guide by, or to retrieve
        assert not [name for name in scores["metrics"] if name.startswith(("retrieval", "align"))]
        assert np.isfinite(list(scores["metrics"].values())).all()
    split = json.loads((run / "splits.json").read_text())["fit"]
    assert sum(len(clips) for part in ("train", "val", "test") for clips in split[part].values()) == 33

    video = next(real_data("video/actions").glob("*.avi"))
    succeeded(videoclip("predict", run, video, "--out", tmp_path / "answers"))
    answer = json.loads((tmp_path / "answers" / "predictions.jsonl").read_text())
    assert [(clip["start_s"], clip["end_s"]) for clip in answer["clips"]] == [(0, 1), (1, 2), (2, 3)]
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert Image.open(tmp_path / "answers" / f"{video.stem}.png").size[0] > 8 * 112


def test_the_masks_of_a_real_scene_guide_and_are_drawn_over_it(videoclip, actions, bear, tmp_path, monkeypatch):
    """A model of people is shown the bear, and where its mask is."""
    overrides = [*TINY, f"data.root={actions}", f"runs={tmp_path / 'runs'}", "name=guided", "data.control=random"]
    succeeded(videoclip(*overrides, "model.model_class_num=2", "model.map_guided=true", "trainer.max_epochs=1"))
    run = tmp_path / "runs" / "videoclip" / "guided"

    assert len(read_clips(DataConfig(root=str(bear)))) == 3
    drawn = []
    sheet = "videoclip.classifier.predict.write_sheet"
    monkeypatch.setattr(sheet, lambda frames, maps, path, title: drawn.append((frames, maps)) or path)
    succeeded(videoclip("overlay", run, f"data.root={bear}", "data.control=none", "--clip", "bear_1"))
    (frames_THW3, maps), *_ = drawn
    assert frames_THW3.shape == (8, 64, 64, 3)
    for place, number in ((0, 26), (7, 48)):  # the frames at 1.0625 s and 1.9375 s, at an assumed 25 a second
        mask = Image.open(real_data("video/bear") / "ground-truth" / f"{number:08}.png").convert("L").resize((64, 64))
        inside = np.asarray(mask) > 127
        assert (inside == (maps["clinician"][place] > 0.5)).mean() > 0.97
    monkeypatch.undo()

    printed = succeeded(videoclip("overlay", bear, "data.size=64", "--clip", "bear_1", "--out", tmp_path / "drawn"))
    assert str(tmp_path / "drawn" / "bear_1.png") in printed
    video_and_map = np.asarray(Image.open(tmp_path / "drawn" / "bear_1.png"))
    assert video_and_map.std() > 20
