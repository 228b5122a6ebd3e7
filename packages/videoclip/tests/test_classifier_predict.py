"""`videoclip predict` and `videoclip overlay`: what is written beside what is said."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_common.runs import Run
from clip_common.video import write_video
from videoclip.classifier.predict import name_outputs, overlay_clips, predict_videos
from videoclip.data.manifest import read_manifest

PREDICT = "videoclip.classifier.predict"
GUIDED = "model.map_guided=true"
pytestmark = pytest.mark.filterwarnings("ignore:no map is given")  # test_classifier_focus is about it


@pytest.fixture
def videos(walks) -> list[Path]:
    return sorted(walks.glob("videos/*/clip_00.mp4"))[:2]


def test_several_videos_are_answered_and_drawn(trained, videos, tmp_path):
    answers, problems = predict_videos(trained(GUIDED), videos, out=tmp_path / "out")
    assert problems == {}
    names = ["clip_00.mp4", "clip_00.png", "clip_00-2.mp4", "clip_00-2.png", "predictions.jsonl"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(names)
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["video"] for line in lines] == [str(video) for video in videos]
    for line, answer in zip(lines, answers, strict=True):
        assert line["probabilities"] == pytest.approx(answer.prediction.probabilities, abs=1e-6)
        assert line["label"] == int(line["class"]) == int(np.argmax(line["probabilities"]))
        assert line["clips"][0].keys() == {"start_s", "end_s", "guided", "probabilities"}
        assert Image.open(answer.files[0]).size[0] > 4 * 96


def test_a_broken_video_is_named_and_the_others_are_answered(trained, videos, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    missing = tmp_path / "missing.mp4"
    answers, problems = predict_videos(trained(), [videos[0], broken, missing, videos[1]], out=tmp_path / "out")
    assert [answer.video for answer in answers] == videos
    assert list(problems) == [broken, missing]
    assert all(message.startswith(str(video)) and "\n" not in message for video, message in problems.items())
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 2


def test_where_nothing_can_be_answered_nothing_is_written(trained, tmp_path):
    answers, problems = predict_videos(trained(), [tmp_path / "missing.mp4"], out=tmp_path / "out")
    assert (answers, len(problems)) == ([], 1)
    assert not (tmp_path / "out").exists()


def test_a_map_belongs_to_one_video(trained, walks, videos, tmp_path):
    record = next(one for one in read_manifest(walks / "manifest.csv") if one.video == videos[0])
    with pytest.raises(ValueError, match="belong to one video; got 2 videos"):
        predict_videos(trained(GUIDED), videos, out=tmp_path, map=record.map)
    answers, _ = predict_videos(trained(GUIDED), videos[:1], out=tmp_path, map=record.map)
    assert json.loads((tmp_path / "predictions.jsonl").read_text())["clips"][0]["guided"] is True
    assert answers[0].files


def test_the_title_says_what_the_picture_is_of(trained, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(f"{PREDICT}.write_sheet", lambda *_, title: titles.append(title))
    write_video(tmp_path / "long.mp4", np.zeros((24, 32, 32, 3), np.uint8), fps=8)
    predict_videos(trained(GUIDED), [tmp_path / "long.mp4"], out=tmp_path)
    assert titles[0].startswith("class ")
    assert titles[0].endswith("; the first of 3 clips")


def test_a_dot_in_a_name_is_no_suffix(trained, videos, tmp_path):
    dotted = [tmp_path / "walk.1.mp4", tmp_path / "walk.2.mp4"]
    for copy, video in zip(dotted, videos, strict=True):
        shutil.copy(video, copy)
    answers, _ = predict_videos(trained(GUIDED), dotted, out=tmp_path / "out")
    drawn = [file.name for answer in answers for file in answer.files]
    assert drawn == ["walk.1.png", "walk.1.mp4", "walk.2.png", "walk.2.mp4"]


def test_names_of_pictures():
    paths = [Path("a/x.mp4"), Path("b/x.avi"), Path("c/x-2.mp4"), Path("d/Gänge.mp4")]
    assert list(name_outputs(paths).values()) == ["x", "x-2", "x-2-2", "Gänge"]


def test_the_clips_of_a_set_are_drawn_each_of_another_subject(walks, tmp_path):
    files = overlay_clips(walks, count=3, out=tmp_path, overrides=["data.size=32", "data.maps=doctor2"])
    assert [file.name for file in files] == [
        f"subject_{number:02d}_clip_00.{suffix}" for number in range(3) for suffix in ("png", "mp4")
    ]
    assert all(file.stat().st_size > 500 for file in files)


def test_another_doctor_is_another_picture(walks, tmp_path):
    records = read_manifest(walks / "manifest.csv")
    name = next(record.clip_id for record in records if record.regions_doctor1 != record.regions_doctor2)
    drawn = [
        overlay_clips(walks, clips=[name], out=tmp_path / maps, overrides=["data.size=32", f"data.maps={maps}"])[0]
        for maps in ("doctor1", "doctor2")
    ]
    first, second = (np.asarray(Image.open(file)) for file in drawn)
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


def test_clips_of_a_run_are_of_its_test_split_and_show_where_the_model_looked(trained, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        f"{PREDICT}.write_sheet",
        lambda frames, maps, path, title: drawn.append((list(maps), title)) or path,
    )
    run = trained(GUIDED)
    files = overlay_clips(run, count=5, out=tmp_path)
    tested = json.loads((run / "splits.json").read_text())["fit"]["test"]
    assert [file.stem for file in files[::2]] == [clips[0] for clips in tested.values()]
    assert all(maps == ["clinician", "model"] for maps, _ in drawn)
    assert all("predicted" in title for _, title in drawn)
    drawn.clear()
    overlay_clips(trained("model.clip_backbone=2dcnn"), count=1, out=tmp_path)
    overlay_clips(trained(GUIDED, "model.guide=predicted"), count=1, out=tmp_path)
    assert [maps for maps, _ in drawn] == [["clinician", "model"], ["clinician", "predicted map", "model"]]


def test_what_is_drawn_is_what_the_model_is_shown(trained, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(f"{PREDICT}.write_sheet", lambda frames, maps, path, title: drawn.append(maps) or path)
    for override in ("data.control=none", "data.control=shuffled", "data.control=absent", "data.map_noise=0.5"):
        overlay_clips(trained(GUIDED), count=1, out=tmp_path, overrides=[override])
    own, shuffled, absent, noisy = drawn
    assert [next(iter(maps)) for maps in drawn] == ["clinician", "shuffled map", "absent map", "clinician"]
    assert not absent["absent map"].any()
    for other in (shuffled["shuffled map"], noisy["clinician"]):
        assert other.any()
        assert not np.allclose(other, own["clinician"], atol=0.01)
    assert not np.allclose(absent["model"], own["model"], atol=0.01)


def test_a_run_draws_the_split_that_is_asked_for_and_deals_nobody_anew(trained, tmp_path):
    run = trained(GUIDED)
    files = overlay_clips(run, count=9, out=tmp_path, overrides=["split=val"])
    validated = json.loads((run / "splits.json").read_text())["fit"]["val"]
    assert [file.stem for file in files[::2]] == [clips[0] for clips in validated.values()]
    with pytest.raises(ValueError, match=r"data\.fold=1 would take clips that .* was trained on"):
        overlay_clips(run, out=tmp_path, overrides=["data.fold=1"])


def test_by_default_the_pictures_of_a_run_lie_in_it(trained):
    run = trained(GUIDED)
    assert overlay_clips(run, count=1)[0].parent == run / "plots" / "overlays"


def test_what_cannot_be_drawn_is_one_line(walks, trained, tmp_path):
    with pytest.raises(ValueError, match="no clip is called nobody; there are subject_00_clip_00, "):
        overlay_clips(walks, clips=["nobody"], out=tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        overlay_clips(tmp_path / "nowhere", out=tmp_path)
    with pytest.raises(ValueError, match="the model is trained"):
        overlay_clips(trained(GUIDED), out=tmp_path, overrides=["model.attn_in_channels=2"])
    other = Run.create("clipse", config_yaml="results: 1\n", name="other", root=tmp_path).path
    with pytest.raises(ValueError, match="is a run of clipse, not of videoclip"):
        overlay_clips(other, out=tmp_path)
