"""A trained model's answers: those of `videoclip test`, alone or in a batch, of long videos, with and without a map."""

import shutil

import numpy as np
import pytest
import torch

from clip_common.config import load_config
from clip_common.errors import DataError
from clip_common.video import write_video
from videoclip import Classifier, Config, score
from videoclip.classifier.classifier import Sampling
from videoclip.config import ModelConfig
from videoclip.data.manifest import read_manifest
from videoclip.models import VideoAttentionCLIP

GUIDED = ("model.map_guided=true",)
pytestmark = pytest.mark.filterwarnings("ignore:no map is given")  # test_classifier_focus is about it


@pytest.fixture
def records(walks):
    return {record.clip_id: record for record in read_manifest(walks / "manifest.csv")}


@pytest.mark.parametrize(
    "overrides", [GUIDED, ("model.clip_backbone=2dcnn",), ("model.clip_classifier_source=fusion",)]
)
def test_a_clip_alone_is_predicted_as_the_test_predicts_it_in_a_batch(trained, records, small, tmp_path, overrides):
    run = shutil.copytree(trained(*overrides), tmp_path / "run")
    tested = score(run).predictions
    classifier = Classifier.from_pretrained(run, device="cpu")
    config = load_config(Config, config=run / "config.yaml").data
    for clip_id, expected_K in zip(tested.clip_ids, tested.probability_NK, strict=True):
        found = classifier.predict_record(records[clip_id], config).probability_K
        np.testing.assert_allclose(found, expected_K, atol=1e-5)
        record = records[clip_id]
        given = {"map": record.map} if overrides != ("model.clip_backbone=2dcnn",) else {}
        np.testing.assert_allclose(classifier.predict(record.video, **given).probability_K, expected_K, atol=1e-5)


def test_it_wants_its_clips_as_it_was_trained(trained):
    assert Classifier.from_pretrained(trained(*GUIDED)).sampling == Sampling(frames=4, size=32, clip_seconds=1.0)


def test_a_map_guides_and_one_drawn_from_joints_is_that_of_the_file(trained, records):
    classifier = Classifier.from_pretrained(trained(*GUIDED), device="cpu")
    record = records["subject_04_clip_01"]
    without = classifier.predict(record.video)
    by_file = classifier.predict(record.video, map=record.map)
    drawn = classifier.predict(record.video, keypoints=record.keypoints, regions=record.regions_doctor1)
    elsewhere = classifier.predict(record.video, keypoints=record.keypoints, regions=["head"])
    assert [said.clips[0].guided for said in (without, by_file, drawn)] == [False, True, True]
    np.testing.assert_allclose(drawn.probability_K, by_file.probability_K, atol=1e-3)
    for other in (without, elsewhere):
        assert np.abs(other.probability_K - by_file.probability_K).max() > 1e-4


def test_a_long_video_is_cut_into_clips_and_averaged(trained, tmp_path):
    classifier = Classifier.from_pretrained(trained(*GUIDED), device="cpu")
    pixels = np.random.default_rng(0).integers(256, size=(26, 32, 32, 3), dtype=np.uint8)
    video = tmp_path / "häll way.mp4"
    write_video(video, pixels, fps=8)  # 3.25 s
    said = classifier.predict(video)
    assert [(clip.start_s, clip.end_s) for clip in said.clips] == [
        pytest.approx((3.25 * part / 3, 3.25 * (part + 1) / 3)) for part in range(3)
    ]
    assert said.probability_K == pytest.approx(np.mean([clip.probability_K for clip in said.clips], axis=0))
    assert sum(said.probabilities) == pytest.approx(1)
    assert said.label == int(np.argmax(said.probabilities))
    part = classifier.predict(video, start_s=said.clips[1].start_s, end_s=said.clips[1].end_s)
    assert part.probability_K == pytest.approx(said.clips[1].probability_K)
    assert len(classifier.predict(video, end_s=0.4).clips) == 1
    with pytest.raises(DataError, match=r"is not within a video of 3\.25 s"):
        classifier.predict(video, start_s=3, end_s=9)


def test_a_map_of_a_whole_video_goes_with_its_clips(trained, tmp_path):
    """One that lights up in the second half guides the second clip alone."""
    classifier = Classifier.from_pretrained(trained(*GUIDED), device="cpu")
    write_video(tmp_path / "two.mp4", np.zeros((16, 32, 32, 3), np.uint8), fps=8)
    map_THW = np.zeros((16, 8, 8), np.float32)
    map_THW[8:, :4] = 1
    np.save(tmp_path / "map.npy", map_THW)
    said = classifier.predict(tmp_path / "two.mp4", map=tmp_path / "map.npy")
    assert [clip.guided for clip in said.clips] == [False, True]


def test_frames_in_a_folder_or_an_npz_are_a_video_too(trained, tmp_path):
    from PIL import Image

    classifier = Classifier.from_pretrained(trained(), device="cpu")
    pixels = np.random.default_rng(0).integers(256, size=(25, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "frames.npz", frames=pixels)
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(pixels):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number}.png")
    one, other = (classifier.predict(tmp_path / name) for name in ("frames.npz", "frames"))
    assert len(one.clips) == 1
    assert one.probability_K == pytest.approx(other.probability_K)


def test_where_it_looked_lies_where_the_map_is(trained, records, tmp_path):
    """Of an untrained model on noise, too: pooling weighs tokens by the map."""
    torch.manual_seed(0)
    model = VideoAttentionCLIP(ModelConfig(clip_feature_dim=8, clip_embed_dim=8, map_guided=True))
    classifier = Classifier(model, Sampling(frames=4, size=32, clip_seconds=1.0), device="cpu")
    pixels = np.random.default_rng(0).integers(256, size=(8, 32, 32, 3), dtype=np.uint8)
    write_video(tmp_path / "noise.mp4", pixels, fps=8)
    map_THW = np.zeros((8, 32, 32), np.float32)
    map_THW[:, :16, :16] = 1
    np.save(tmp_path / "map.npy", map_THW)
    looked_THW = classifier.predict(tmp_path / "noise.mp4", map=tmp_path / "map.npy").clips[0].looked_THW
    assert looked_THW.shape == (2, 16, 16)
    inside = looked_THW[:, :8, :8].sum()
    assert inside > 0.9 * looked_THW.sum()


@pytest.mark.parametrize(
    ("overrides", "given", "message"),
    [
        (GUIDED, {"regions": ["foot"]}, "a map is drawn from keypoints and regions: give both, or neither"),
        (GUIDED, {"keypoints": "k"}, "a map is drawn from keypoints and regions: give both, or neither"),
        (GUIDED, {"keypoints": "k", "map": "m", "regions": ["foot"]}, "give a map, or keypoints and regions"),
        (GUIDED, {"keypoints": "k", "regions": ["feet"]}, "feet"),
        (GUIDED, {"map": "nowhere.npy"}, "nowhere.npy"),
        ((), {"map": "m"}, "this model does not use maps"),
        (("model.clip_classifier_source=fusion",), {}, "this model classifies maps .*: give a map"),
    ],
)
def test_a_map_that_cannot_count_is_refused_and_not_left_out(trained, records, overrides, given, message):
    record = records["subject_00_clip_00"]
    files = {"m": record.map, "k": record.keypoints}
    given = {name: files.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        Classifier.from_pretrained(trained(*overrides)).predict(record.video, **given)
