"""Where a model looked, for every encoder; answers without a map that the model needs; names of classes."""

import json

import pytest
import torch

from videoclip.classifier.classifier import Classifier
from videoclip.classifier.focus import grad_cam, locate_focus, predicted_map
from videoclip.classifier.predict import predict_videos
from videoclip.config import ConfigError, ModelConfig
from videoclip.models import VideoAttentionCLIP

SMALL = {"clip_feature_dim": 16, "clip_embed_dim": 8, "map_guided_hidden_dim": 8}
GUIDED = "model.map_guided=true"


@pytest.fixture
def videos(walks):
    return sorted(walks.glob("videos/*/clip_00.mp4"))[:2]


def answered(*, size=32, **knobs):
    """A model in eval mode and its output for one clip, as `Classifier` computes it."""
    torch.manual_seed(0)
    model = VideoAttentionCLIP(ModelConfig(**SMALL | knobs)).eval()
    video, maps = torch.randn(1, 3, 4, size, size), torch.rand(1, 1, 4, size, size)
    with torch.inference_mode():
        return model, model(video, maps, align=False)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("backbone", ["2dcnn", "cnn_lstm", "r3d_18", "mc3_18", "r2plus1d_18"])
def test_grad_cam_is_the_published_formula(backbone, guided):
    model, output = answered(clip_backbone=backbone, map_guided=guided, size=96)
    tokens = output.video_tokens.clone().requires_grad_()
    feature = model.video_encoder.pooled(tokens)
    feature = feature * output.video_gate.clone() if guided else feature
    model.classifier(feature)[0].max().backward()
    expected = torch.zeros(tokens.shape[2:])
    for frame in range(tokens.shape[2]):
        for channel in range(tokens.shape[1]):
            expected[frame] += tokens.grad[0, channel, frame].mean() * tokens[0, channel, frame].detach()
    expected = expected.relu()
    span = expected.max() - expected.min()
    expected = (expected - expected.min()) / span if span else expected
    torch.testing.assert_close(torch.from_numpy(grad_cam(model, output)), expected, atol=1e-4, rtol=1e-4)
    assert (locate_focus(model, output) == grad_cam(model, output)).all()
    assert predicted_map(output) is None


def test_a_frame_that_speaks_for_no_class_is_dark():
    model, output = answered(clip_backbone="2dcnn")
    torch.nn.init.zeros_(model.classifier.weight)
    assert not grad_cam(model, output).any()


def test_a_predicted_map_sums_to_one_and_is_drawn_from_0_to_1():
    model, output = answered(map_guided=True, guide="predicted")
    assert output.predicted_map.shape == (1, 1, 2, 16, 16)
    assert output.predicted_map.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = predicted_map(output)
    assert (drawn.shape, drawn.min(), drawn.max()) == ((2, 16, 16), 0, 1)
    assert locate_focus(model, output).shape == (2, 16, 16)


@pytest.mark.parametrize("backbone", ["3dcnn", "2dcnn", "cnn_lstm"])
def test_every_video_gets_its_pictures(trained, videos, tmp_path, backbone):
    answers, _ = predict_videos(trained(f"model.clip_backbone={backbone}"), videos, out=tmp_path / "out")
    assert all(file.stat().st_size > 1000 for answer in answers for file in answer.files)
    assert [len(answer.files) for answer in answers] == [2, 2]


@pytest.mark.filterwarnings("default:no map is given")
@pytest.mark.parametrize("overrides", [(), ("model.clip_backbone=2dcnn",)])
def test_a_model_that_needs_a_map_says_so_first_and_refuses_if_strict(trained, videos, tmp_path, videoclip, overrides):
    run = trained(GUIDED, *overrides)
    with pytest.warns(UserWarning, match=r"no map is given, and this model has learned to classify with one alone"):
        Classifier.from_pretrained(run).predict(videos[0])
    with pytest.raises(ValueError, match="no map is given"):
        Classifier.from_pretrained(run).predict(videos[0], strict=True)
    code, printed, error = videoclip("predict", str(run), str(videos[0]), "--out", str(tmp_path / "out"))
    assert code == 0
    assert "no map is given" in (error + printed).lstrip().splitlines()[0]
    code, _, error = videoclip("predict", str(run), str(videos[0]), "--out", str(tmp_path / "strict"), "--strict")
    assert code != 0
    assert "no map is given" in error
    assert not (tmp_path / "strict").exists()


@pytest.mark.parametrize("learned", ["model.map_dropout=0.5", "model.guide=predicted", "model.guide=mixed"])
def test_a_model_that_learned_to_do_without_answers_without_a_word(trained, videos, learned):
    assert not Classifier.from_pretrained(trained(GUIDED, learned)).predict(videos[0], strict=True).clips[0].guided


def test_classes_are_called_by_their_names(trained, videos, tmp_path, videoclip):
    names = ["gesund", "Fuß", "Arm"]
    run = trained(f"model.class_names={json.dumps(names, ensure_ascii=False)}")
    code, printed, _ = videoclip("predict", str(run), str(videos[0]), "--out", str(tmp_path))
    assert code == 0
    assert all(f"p({name})" in printed for name in names)
    line = json.loads((tmp_path / "predictions.jsonl").read_text(encoding="utf-8"))
    assert line["class"] == names[line["label"]]
    _, printed, _ = videoclip("test", str(run))
    assert all(f"{name} " in printed.split("recall of each class:")[1] for name in names)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "b"], ["a", "b", "c", "d"]])
def test_names_of_other_classes_are_refused(names):
    with pytest.raises(ConfigError, match=r"model\.class_names: expected 3 different names"):
        ModelConfig(class_names=names)
