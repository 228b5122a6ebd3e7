"""Guided pooling against its formula, written out; what a map without content does."""

import pytest
import torch
from torch.nn import functional as F

from videoclip.config import ModelConfig
from videoclip.models.pooling import MapGuidedVideoEncoder, resize_to_grid, varies

ALL = torch.tensor([True, True, True])


def encoder_of(kind="spatiotemporal", **knobs):
    torch.manual_seed(0)
    encoder = MapGuidedVideoEncoder(ModelConfig(clip_feature_dim=5, map_guided=True, map_guided_type=kind, **knobs))
    if encoder.alpha is not None:
        torch.nn.init.constant_(encoder.alpha, 0.7)
    return encoder.double()


def inputs_of(channels=1):
    generator = torch.Generator().manual_seed(1)
    video, maps = (torch.rand(3, c, 4, 8, 6, generator=generator, dtype=torch.float64) for c in (3, channels))
    return video, maps


def literal(encoder, video, maps):
    """(feature, x̃, g) as the specification has it, of varying maps of one channel."""
    x = encoder.encoder.tokens(video)
    a = F.interpolate(maps, size=x.shape[2:], mode="trilinear", align_corners=False)
    low, high = a.amin((1, 2, 3, 4), keepdim=True), a.amax((1, 2, 3, 4), keepdim=True)
    a = (a - low) / (high - low)
    if encoder.kind == "weighted_pool":
        return encoder.encoder.head((a * x).sum((2, 3, 4)) / a.sum((2, 3, 4))), x, a
    g = a if encoder.sigmoid_gate is None else encoder.sigmoid_gate(a)
    gated = x * (1 + encoder.alpha * g)
    return encoder.encoder.head((g * gated).sum((2, 3, 4)) / g.sum((2, 3, 4))), gated, g


def gradients(encoder, feature):
    encoder.zero_grad()
    (feature * torch.arange(1.0, 1.0 + feature.numel(), dtype=feature.dtype).view_as(feature)).sum().backward()
    return {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("kind", ["spatiotemporal", "weighted_pool"])
def test_one_contraction_is_the_formula_with_its_gradients(kind, sigmoid):
    encoder, (video, maps) = encoder_of(kind, map_guided_sigmoid_gate=sigmoid), inputs_of()
    guided = encoder(video, maps, valid_B=ALL)
    feature, gated, gate = literal(encoder, video, maps)
    torch.testing.assert_close(guided.feature, feature)
    torch.testing.assert_close(guided.gate, gate)
    if kind == "spatiotemporal":
        torch.testing.assert_close(guided.tokens * guided.gain, gated)
    else:
        assert guided.gain is None
    torch.testing.assert_close(gradients(encoder, guided.feature), gradients(encoder, feature))


def test_by_hand():
    """Two tokens, 2 and 6, the map on the second alone: Σ g·x·(1 + α·g) / Σ g = 6·(1 + 0.5)."""
    encoder = encoder_of()
    torch.nn.init.constant_(encoder.alpha, 0.5)
    tokens = torch.tensor([2.0, 6.0], dtype=torch.float64).expand(1, 64, 1, 1, 2)
    encoder.encoder.tokens = lambda video: tokens
    encoder.encoder.head = torch.nn.Identity()
    maps = torch.tensor([0.2, 0.9], dtype=torch.float64).view(1, 1, 1, 1, 2)
    valid = torch.tensor([True])
    assert encoder(tokens, maps, valid_B=valid).feature[0, 0].item() == pytest.approx(9)
    encoder.alpha = None  # what weighted_pool does
    assert encoder(tokens, maps, valid_B=valid).feature[0, 0].item() == pytest.approx(6)
    assert encoder(tokens, maps, valid_B=~valid).feature[0, 0].item() == pytest.approx(4)


def test_the_channel_gate_is_the_formula():
    encoder, (video, maps) = encoder_of("channel", attn_in_channels=2), inputs_of(2)
    guided = encoder(video, maps, valid_B=ALL)
    x = encoder.encoder.tokens(video)
    gate = encoder.channel_gate(maps.mean((2, 3, 4)))
    assert gate.shape == (3, 64)
    torch.testing.assert_close(guided.tokens * guided.gain, x * gate[:, :, None, None, None])
    feature = encoder.encoder.head((x * gate[:, :, None, None, None]).mean((2, 3, 4)))
    torch.testing.assert_close(guided.feature, feature)
    torch.testing.assert_close(gradients(encoder, guided.feature), gradients(encoder, feature))


@pytest.mark.parametrize("kind", ["spatiotemporal", "weighted_pool", "channel"])
@pytest.mark.parametrize("empty", [0.0, 0.3])
def test_a_constant_or_hidden_map_pools_evenly_without_a_gate(kind, empty):
    encoder, (video, maps) = encoder_of(kind), inputs_of()
    maps[1] = empty
    guided = encoder(video, maps, valid_B=torch.tensor([True, True, False]))
    even = encoder.encoder(video)
    torch.testing.assert_close(guided.feature[1:], even[1:])
    assert (guided.feature[0] - even[0]).abs().max() > 1e-4
    assert (guided.gate[1:] == 1).all()
    if guided.gain is not None:
        assert (guided.gain[1:] == 1).all()
    found = gradients(encoder, encoder(video, torch.zeros_like(maps), valid_B=ALL).feature)
    plain = encoder.encoder
    plain.zero_grad()
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert found["encoder.trunk.0.conv.weight"].abs().max() > 0
    if kind == "spatiotemporal":
        assert found["alpha"] == 0


def test_rounding_of_a_constant_map_is_not_stretched():
    noisy = torch.full((1, 1, 4, 8, 8), 0.3) + 1e-7 * torch.rand(1, 1, 4, 8, 8)
    a, vary = resize_to_grid(noisy, torch.Size([2, 4, 4]))
    assert not vary.any()
    assert a.max() < 1e-5
    assert not varies(noisy).any()
    noisy[0, 0, 0, 0, 0] = 0.31
    assert varies(noisy).all()


def test_a_checkerboard_that_averages_out_on_the_grid_pools_evenly():
    encoder, (video, _) = encoder_of(), inputs_of()
    index = sum(torch.meshgrid(*(torch.arange(side) for side in (4, 8, 6)), indexing="ij"))
    maps = (index % 2).double().expand(3, 1, 4, 8, 6)
    assert varies(maps).all()
    torch.testing.assert_close(encoder(video, maps, valid_B=ALL).feature, encoder.encoder(video))


def test_channels_guide_by_their_mean_or_each_apart():
    video, maps = inputs_of(2)
    mean = encoder_of(attn_in_channels=2, gate_channels="mean")
    each = encoder_of(attn_in_channels=2, gate_channels="each")
    by_mean = mean(video, maps, valid_B=ALL)
    torch.testing.assert_close(by_mean.feature, literal(mean, video, maps.mean(1, keepdim=True))[0])
    by_each = each(video, maps, valid_B=ALL)
    apart = [literal(each, video, maps[:, c : c + 1]) for c in (0, 1)]
    torch.testing.assert_close(by_each.feature, (apart[0][0] + apart[1][0]) / 2)
    torch.testing.assert_close(by_each.tokens * by_each.gain, (apart[0][1] + apart[1][1]) / 2)
    assert by_each.gate.shape[1] == 2
    assert (by_mean.feature - by_each.feature).abs().max() > 1e-4


def test_of_each_channel_a_constant_one_pools_evenly():
    encoder, (video, maps) = encoder_of(attn_in_channels=2, gate_channels="each"), inputs_of(2)
    maps[:, 1] = 0
    feature = (literal(encoder, video, maps[:, :1])[0] + encoder.encoder(video)) / 2
    torch.testing.assert_close(encoder(video, maps, valid_B=ALL).feature, feature)


def test_a_map_of_any_size_and_scale_guides_alike():
    encoder, (video, maps) = encoder_of(), inputs_of()
    feature = encoder(video, maps, valid_B=ALL).feature
    torch.testing.assert_close(encoder(video, 0.1 * maps + 0.4, valid_B=ALL).feature, feature)
    small = F.interpolate(maps, size=(2, 4, 3), mode="trilinear", align_corners=False)
    torch.testing.assert_close(encoder(video, small, valid_B=ALL).feature, feature)


def test_half_precision_is_close_over_many_tokens():
    encoder = encoder_of().float()
    generator = torch.Generator().manual_seed(0)
    video, maps = (torch.rand(1, c, 8, 96, 96, generator=generator) for c in (3, 1))
    feature = encoder(video, maps, valid_B=ALL[:1]).feature
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(video, maps, valid_B=ALL[:1]).feature
    assert half.dtype == torch.bfloat16
    assert (half.float() - feature).norm() < 0.02 * feature.norm()


@pytest.mark.parametrize("attribute", ["alpha", "sigmoid_gate"])
def test_what_gates_has_a_gradient(attribute):
    encoder, (video, maps) = encoder_of(map_guided_sigmoid_gate=True), inputs_of()
    found = gradients(encoder, encoder(video, maps, valid_B=ALL).feature)
    assert all(gradient.abs().max() > 0 for name, gradient in found.items() if name.startswith(attribute))
    assert encoder_of().alpha.requires_grad


def test_alpha_starts_at_one_and_belongs_to_spatiotemporal_alone():
    config = ModelConfig(map_guided=True)
    assert MapGuidedVideoEncoder(config).alpha.item() == 1
    assert encoder_of("weighted_pool").alpha is None
    assert encoder_of("channel").alpha is None
