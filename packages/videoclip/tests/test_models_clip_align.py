"""The encoders, the whole model, and what each of its switches changes."""

import pytest
import torch
import torchvision
from torch import nn

from videoclip.config import LossConfig, ModelConfig
from videoclip.models import (
    Output,
    Simple2DEncoder,
    Simple3DEncoder,
    SimpleCNNLSTMEncoder,
    VideoAttentionCLIP,
    build_video_encoder,
    normalise,
)
from videoclip.training.losses import VideoClipLoss

SMALL = {"clip_feature_dim": 16, "clip_embed_dim": 8, "map_guided_hidden_dim": 8}
BACKBONES = ["3dcnn", "2dcnn", "cnn_lstm", "r3d_18", "mc3_18", "r2plus1d_18"]


def model_of(*, temperature=None, seed=0, **knobs):
    torch.manual_seed(seed)
    return VideoAttentionCLIP(ModelConfig(**SMALL | knobs), temperature=temperature)


def inputs_of(batch=3, *, channels=1, frames=4, size=16):
    generator = torch.Generator().manual_seed(1)
    shape = (frames, size, size)
    return (torch.rand(batch, c, *shape, generator=generator) for c in (3, channels))


def gradients(model, *, clip_weight=1.0, channels=1):
    """Names of the parameters that the loss reaches."""
    video, maps = inputs_of(channels=channels)
    loss = VideoClipLoss(LossConfig(clip_weight=clip_weight), token_config=model.config)
    ids = torch.arange(3)
    model.zero_grad()
    found = loss(
        model(video, maps), map_BCTHW=maps, label_B=ids, subject_B=ids, regions_B=ids, scale=model.logit_scale()
    )
    found.total.backward()
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def reached(names, part):
    return any(name.startswith(part) for name in names)


def logits_of(model):
    return model.eval()(*inputs_of(channels=model.config.attn_in_channels)).logits


def test_the_3d_encoder_is_the_documented_sequence():
    torch.manual_seed(0)
    encoder, (video, _) = Simple3DEncoder(3, 16), inputs_of()
    stem, conv, bn, relu = encoder.trunk
    plain = nn.Sequential(stem.conv, stem.bn, nn.ReLU(), nn.MaxPool3d(2), conv, bn, relu)
    plain.train()
    torch.testing.assert_close(encoder(video), encoder.head(plain(video).mean((2, 3, 4))))
    assert encoder.tokens(video).shape == (3, 64, 2, 8, 8)
    shapes = [tuple(parameter.shape) for name, parameter in encoder.named_parameters() if name.endswith("weight")]
    assert shapes == [(32, 3, 3, 3, 3), (32,), (64, 32, 3, 3, 3), (64,), (16, 64)]


def test_the_2d_encoder_sees_frame_by_frame_and_averages():
    encoder = Simple2DEncoder(3, 16).eval()
    video, _ = inputs_of()
    each = torch.stack([encoder(video[:, :, t : t + 1]) for t in range(4)])
    torch.testing.assert_close(encoder(video), each.mean(0))
    torch.testing.assert_close(encoder(video.flip(2)), encoder(video))


def test_the_lstm_reads_the_order_of_frames():
    encoder = SimpleCNNLSTMEncoder(3, 16).eval()
    video, _ = inputs_of()
    assert (encoder(video.flip(2)) - encoder(video)).abs().max() > 1e-5
    frames = encoder.frames(video).mean((3, 4)).transpose(1, 2)
    states, _ = encoder.lstm(encoder.frame_head(frames))
    assert states.shape == (3, 4, 256)
    torch.testing.assert_close(encoder(video), encoder.head(states[:, -1]))


@pytest.mark.parametrize("pool", ["grid", "mean"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_gives_features_and_learns(backbone, pool):
    model = model_of(clip_backbone=backbone, map_guided=True, align_pool=pool)
    video, maps = inputs_of(size=32)
    output = model(video, maps)
    assert output.video_feat.shape == (3, 16)
    assert output.logits.shape == (3, 3)
    assert output.video_tokens.shape[:2] == (3, model.video_encoder.token_dim)
    (output.logits.sum() + output.attn_embed[:, 0].sum() + output.video_embed[:, 0].sum()).backward()
    missing = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    unread = {"attn_encoder.head.weight", "attn_encoder.head.bias"} if pool == "grid" else set()
    assert missing == {"logit_scale.logit_scale"} | unread


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tokens_and_what_is_read_from_them_are_the_whole_encoder(backbone):
    """torchvision's networks in their own words; the readout is all that the tokens do not need."""
    torch.manual_seed(0)
    encoder, (video, _) = build_video_encoder(backbone, feature_dim=16).eval(), inputs_of(size=32)
    tokens = encoder.tokens(video)
    torch.testing.assert_close(encoder(video), encoder.pooled(tokens), rtol=0, atol=0)
    if backbone.endswith("18"):
        torch.testing.assert_close(encoder(video), encoder.network(video), rtol=0, atol=0)
    tokens.sum().backward()
    unused = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    owned = {id(parameter) for part in encoder.readout for parameter in part.parameters()}
    assert unused == {name for name, parameter in encoder.named_parameters() if id(parameter) in owned}


@pytest.mark.parametrize("backbone", ["3dcnn", "2dcnn", "cnn_lstm"])
@pytest.mark.parametrize("half", [False, True])
def test_the_output_is_typed_and_embeddings_are_unit_vectors(backbone, half):
    model = model_of(clip_backbone=backbone)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = model(*inputs_of())
    assert isinstance(output, Output)
    for embedding in (output.video_embed, output.attn_embed):
        assert embedding.shape == (3, 8)
        assert embedding.dtype == torch.float32
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(3))
    assert output.video_gate is None
    assert output.map_valid.all()
    assert output.gated_tokens is output.video_tokens
    if backbone == "3dcnn":
        assert output.video_tokens.shape == (3, 64, 2, 8, 8)


def test_the_defaults_are_the_documented_widths():
    torch.manual_seed(0)
    output = VideoAttentionCLIP(ModelConfig())(*inputs_of())
    assert output.video_feat.shape == (3, 512)
    assert output.video_embed.shape == (3, 256)
    assert output.logits.shape == (3, 3)


@pytest.mark.parametrize("knobs", [{}, {"map_guided": True}, {"map_guided": True, "clip_backbone": "cnn_lstm"}])
def test_a_clip_alone_and_in_a_batch_are_predicted_alike(knobs):
    model, (video, maps) = model_of(**knobs), inputs_of(batch=5)
    model(video, maps)  # running statistics of their own
    model.eval()
    together = model(video, maps)
    for row in range(5):
        alone = model(video[row : row + 1], maps[row : row + 1])
        torch.testing.assert_close(alone.logits[0], together.logits[row])
        torch.testing.assert_close(alone.video_embed[0], together.video_embed[row])


def test_normalise_is_torchvisions():
    pixels = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    preset = torchvision.models.video.R3D_18_Weights.DEFAULT.transforms()
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (preset.mean, preset.std))
    found = normalise(pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (pixels / 255 - mean) / std)


# what each switch changes


@pytest.mark.parametrize(
    "knobs",
    [
        {"map_guided": True, "map_guided_type": "spatiotemporal"},
        {"map_guided": True, "map_guided_type": "channel"},
        {"map_guided": True, "map_guided_type": "weighted_pool"},
        {"map_guided": True, "clip_backbone": "2dcnn"},
        {"map_guided": True, "clip_backbone": "cnn_lstm"},
    ],
)
def test_only_a_guided_video_depends_on_its_map(knobs):
    (video, maps), other = inputs_of(), torch.rand(3, 1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    for guided in (True, False):
        model = model_of(**knobs | {"map_guided": guided}).eval()
        change = (model(video, maps).video_feat - model(video, other).video_feat).abs().max()
        assert (change > 0) == guided


@pytest.mark.parametrize("backbone", ["3dcnn", "2dcnn"])
def test_an_invalid_map_leaves_the_video_as_it_is_without_guidance(backbone):
    model = model_of(map_guided=True, clip_backbone=backbone, align_pool="mean").eval()
    plain = model_of(clip_backbone=backbone, align_pool="mean").eval()
    state = {name.replace("video_encoder.encoder.", "video_encoder."): t for name, t in model.state_dict().items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    video, maps = inputs_of()
    maps[0] = 0.4
    guided = model(video, maps, valid_B=torch.tensor([True, False, True]))
    expected = plain(video, maps)
    torch.testing.assert_close(guided.video_feat[:2], expected.video_feat[:2])
    assert (guided.video_feat[2] - expected.video_feat[2]).abs().max() > 1e-5
    assert guided.map_valid.tolist() == [False, False, True]
    torch.testing.assert_close(guided.attn_feat, expected.attn_feat)  # the map encoder sees what there is


def test_guidance_has_parameters_and_gradients_of_its_own():
    for knobs, part in (
        ({}, "video_encoder.alpha"),
        ({"map_guided_sigmoid_gate": True}, "video_encoder.sigmoid_gate"),
        ({"map_guided_type": "channel"}, "video_encoder.channel_gate"),
        ({"clip_backbone": "2dcnn"}, "map_gate"),
    ):
        assert reached(gradients(model_of(map_guided=True, **knobs)), part)
        assert not reached(gradients(model_of(**knobs)), part)
    assert not reached(gradients(model_of(map_guided=True, map_guided_type="weighted_pool")), "video_encoder.alpha")


def test_each_guidance_predicts_differently():
    kinds = [
        {"map_guided": False},
        *({"map_guided": True, "map_guided_type": kind} for kind in ("spatiotemporal", "channel", "weighted_pool")),
        {"map_guided": True, "map_guided_sigmoid_gate": True},
    ]
    models = [model_of(**kind) for kind in kinds]
    encoders = [getattr(model.video_encoder, "encoder", model.video_encoder) for model in models]
    for model, encoder in zip(models[1:], encoders[1:], strict=True):
        encoder.load_state_dict(encoders[0].state_dict())
        model.classifier.load_state_dict(models[0].classifier.state_dict())
    found = [logits_of(model) for model in models]
    for first, one in enumerate(found):
        for other in found[first + 1 :]:
            assert (one - other).abs().max() > 1e-5


def test_channels_of_a_map_guide_by_their_mean_or_each():
    mean, each = (model_of(map_guided=True, attn_in_channels=2, gate_channels=how) for how in ("mean", "each"))
    each.load_state_dict(mean.state_dict())
    assert (logits_of(mean) - logits_of(each)).abs().max() > 1e-5
    video, maps = inputs_of(channels=2)
    swapped = maps.flip(1)
    torch.testing.assert_close(mean(video, maps).video_feat, mean(video, swapped).video_feat)


@pytest.mark.parametrize("source", ["video", "attn", "fusion"])
def test_the_classifier_reads_its_source(source):
    model = model_of(clip_classifier_source=source, align_pool="mean").eval()
    output = model(*inputs_of())
    features = {
        "video": output.video_feat,
        "attn": output.attn_feat,
        "fusion": (output.video_feat + output.attn_feat) / 2,
    }
    torch.testing.assert_close(output.logits, model.classifier(features[source]))
    found = gradients(model.train(), clip_weight=0)
    assert reached(found, "video_encoder") == (source != "attn")
    assert reached(found, "attn_encoder") == (source != "video")


@pytest.mark.parametrize("source", ["video", "attn", "fusion"])
def test_classification_alone_is_the_same_and_leaves_out_what_only_alignment_reads(source):
    model = model_of(clip_classifier_source=source, map_guided=True).eval()
    seen = []
    model.attn_encoder.trunk.register_forward_hook(lambda *_: seen.append("map"))
    plain = model(*inputs_of(), align=False)
    assert seen == ([] if source == "video" else ["map"])
    assert (plain.video_embed, plain.attn_embed) == (None, None)
    whole = model(*inputs_of())
    torch.testing.assert_close(plain.logits, whole.logits, rtol=0, atol=0)
    torch.testing.assert_close(plain.video_feat, whole.video_feat, rtol=0, atol=0)


def test_without_alignment_neither_map_encoder_nor_projections_learn():
    aligned, plain = (gradients(model_of(map_guided=True), clip_weight=weight) for weight in (1.0, 0.0))
    for part in ("attn_encoder", "video_projection", "attn_projection", "logit_scale"):
        assert reached(aligned, part)
        assert not reached(plain, part)
    assert reached(plain, "video_encoder.encoder.trunk")
    assert reached(plain, "classifier")


def test_the_token_loss_teaches_the_trunk_alone():
    model = model_of(map_guided=True, lambda_token=0.5)
    video, maps = inputs_of()
    found = VideoClipLoss(LossConfig(), token_config=model.config)(
        model(video, maps),
        map_BCTHW=maps,
        label_B=torch.arange(3),
        subject_B=torch.arange(3),
        regions_B=torch.arange(3),
        scale=model.logit_scale(),
    )
    names, parameters = zip(*model.named_parameters(), strict=True)
    taught = torch.autograd.grad(found.token, parameters, allow_unused=True)
    touched = {name for name, gradient in zip(names, taught, strict=True) if gradient is not None}
    assert touched == {name for name in names if name.startswith("video_encoder.encoder.trunk")}


def test_dropout_of_maps_hides_them_from_guidance_in_training_alone():
    model = model_of(map_guided=True, map_dropout=0.5)
    video, maps = (tensor.repeat(30, 1, 1, 1, 1) for tensor in inputs_of(batch=2))
    torch.manual_seed(0)
    output = model(video, maps)
    hidden = (output.video_gate == 1).flatten(1).all(1)
    assert 0.3 < hidden.float().mean() < 0.7
    assert output.map_valid.all()  # they take part in the alignment
    even = model.video_encoder.encoder.pooled(output.video_tokens)
    torch.testing.assert_close(output.video_feat[hidden], even[hidden])
    assert ((output.video_feat - even)[~hidden].abs().amax(1) > 1e-6).all()
    torch.manual_seed(0)
    assert torch.equal(model(video, maps).video_gate, output.video_gate)
    assert not (model.eval()(video, maps).video_gate == 1).flatten(1).all(1).any()


def test_the_temperature_is_learned_or_fixed():
    learned, fixed = model_of(), model_of(temperature=0.2)
    assert learned.logit_scale().item() == pytest.approx(1 / 0.07)
    assert fixed.logit_scale().item() == pytest.approx(5)
    assert reached(gradients(learned), "logit_scale")
    assert not reached(dict(fixed.named_parameters()), "logit_scale")


def test_it_learns_to_tell_what_shows_where_the_map_is():
    """Bright or dark on the map's half, and the opposite on the other: over the whole, all clips are alike."""
    torch.manual_seed(0)
    video, maps, label = torch.zeros(16, 3, 4, 16, 16), torch.zeros(16, 1, 4, 16, 16), torch.arange(16) % 2
    for row in range(16):
        here, there = (slice(0, 8), slice(8, 16)) if row // 2 % 2 else (slice(8, 16), slice(0, 8))
        sign = 1.0 if label[row] else -1.0
        video[row, ..., here], video[row, ..., there], maps[row, ..., here] = sign, -sign, 1.0
    video += 0.1 * torch.randn_like(video)
    model = model_of(map_guided=True, model_class_num=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    correct = []
    for _ in range(25):
        optimizer.zero_grad()
        logits = model(video, maps).logits
        nn.functional.cross_entropy(logits, label).backward()
        optimizer.step()
        correct.append((logits.argmax(1) == label).float().mean().item())
    assert correct[0] < 0.8
    assert correct[-1] == 1
