"""The lean stem against the plain sequence that it stands for."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from videoclip.models.stem import CHUNK, Conv3d, Stem, _moments, _PoolAndMoments


def stem_of(channels=3, out=6, *, kernel=(3, 3, 3), pool=(2, 2, 2)):
    """γ of both signs."""
    torch.manual_seed(0)
    stem = Stem(channels, out, kernel=kernel, pool=pool)
    nn.init.normal_(stem.bn.weight)
    nn.init.normal_(stem.bn.bias)
    assert (stem.bn.weight < 0).any()
    assert (stem.bn.weight > 0).any()
    return stem


def plain_of(stem):
    return copy.deepcopy(nn.Sequential(stem.conv, stem.bn, nn.ReLU(), nn.MaxPool3d(stem.pool)))


def step(module, x, weigh):
    """Output and all gradients of a weighted sum of its elements."""
    x = x.clone().requires_grad_()
    out = module(x)
    (out * weigh).sum().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]


def require_equal(stem, x):
    plain = plain_of(stem)
    weigh = torch.randn_like(plain(x))
    plain = plain_of(stem)
    for ours, theirs in zip(step(stem, x, weigh), step(plain, x, weigh), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(stem.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 4, 8, 6), (1, 3, 5, 7, 9), (3, 1, 2, 3, 2)])
def test_it_is_the_plain_sequence_with_gradients_and_running_statistics(shape, training):
    stem = stem_of(channels=shape[1]).double().train(training)
    stem.bn.running_mean.normal_()
    stem.bn.running_var.uniform_(0.5, 2)
    require_equal(stem, torch.randn(shape, dtype=torch.float64))


def test_frame_by_frame_it_is_the_two_dimensional_sequence():
    stem = stem_of(kernel=(1, 3, 3), pool=(1, 2, 2)).double()
    conv, bn = nn.Conv2d(3, 6, 3, padding=1).double(), nn.BatchNorm2d(6).double()
    conv.load_state_dict({"weight": stem.conv.weight[:, :, 0], "bias": stem.conv.bias})
    bn.load_state_dict(stem.bn.state_dict())
    video = torch.randn(2, 3, 4, 8, 8, dtype=torch.float64)
    frames = nn.Sequential(conv, bn, nn.ReLU(), nn.MaxPool2d(2))(video.transpose(1, 2).flatten(0, 1))
    torch.testing.assert_close(stem(video), frames.unflatten(0, (2, 4)).transpose(1, 2))
    torch.testing.assert_close(stem.bn.running_var, bn.running_var)


def test_several_steps_update_running_statistics_alike():
    stem, x = stem_of().double(), torch.randn(4, 2, 3, 4, 6, 6, dtype=torch.float64)
    plain = plain_of(stem)
    for batch in x:
        stem(batch), plain(batch)
    assert stem.bn.num_batches_tracked == 4
    for ours, theirs in zip(stem.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(stem.eval()(x[0]), plain.eval()(x[0]))


def test_a_zero_factor_gives_its_shift_and_can_be_learned_away():
    stem, x = stem_of().double(), torch.randn(2, 3, 4, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        stem.bn.weight[2], stem.bn.bias[2] = 0.0, 0.75
    plain = plain_of(stem)
    out = stem(x)
    assert (out[:, 2] == 0.75).all()
    weigh = torch.randn_like(out)
    ours, theirs = (step(module, x, weigh) for module in (stem, plain))
    ours_factor, theirs_factor = ours.pop(4), theirs.pop(4)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    kept = torch.arange(6) != 2
    torch.testing.assert_close(ours_factor[kept], theirs_factor[kept])
    # the derivative from above: what a small positive factor would get
    with torch.no_grad():
        plain[1].weight[2] = 1e-9
    plain.zero_grad()
    torch.testing.assert_close(ours_factor[2], step(plain, x, weigh)[4][2], rtol=1e-5, atol=1e-5)
    assert ours_factor[2] != 0


def test_gradcheck_of_pooling_with_moments():
    y = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    assert torch.autograd.gradcheck(lambda y: _PoolAndMoments.apply(y, (2, 2, 2)), y.requires_grad_())


def test_gradcheck_of_the_whole():
    stem = stem_of(channels=1, out=4).double()
    x = torch.randn(2, 1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stem, x)


def test_half_precision_is_no_further_from_single_than_the_plain_sequence():
    stem, x, weigh = stem_of(), torch.randn(2, 3, 4, 32, 32), torch.randn(2, 6, 2, 16, 16)
    plain, exact = plain_of(stem), plain_of(stem)
    expected = step(exact, x, weigh)
    with torch.autocast("cpu", torch.bfloat16):
        assert copy.deepcopy(stem)(x).dtype == torch.bfloat16
        ours, theirs = step(stem, x, weigh), step(plain, x, weigh)
    for number, (mine, other, wanted) in enumerate(zip(ours, theirs, expected, strict=True)):
        if number != 3:  # the convolution's bias: its gradient is rounding alone
            error = (other.float() - wanted).norm()
            assert 0 < error < 0.1 * wanted.norm()
            assert (mine.float() - wanted).norm() < 1.2 * error
    torch.testing.assert_close(stem.bn.running_mean, exact[1].running_mean, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(stem.bn.running_var, exact[1].running_var, rtol=1e-3, atol=0)


@pytest.fixture
def poisoned_memory():
    """What torch allocates without writing holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("frames", [2, 3, 4])
def test_no_unwritten_memory_reaches_a_gradient(poisoned_memory, frames):
    for channels in (1, 3):
        stem, conv = stem_of(channels=channels), Conv3d(channels, 8, (3, 3, 3))
        for module in (stem, conv):
            with torch.autocast("cpu", torch.bfloat16):
                out = module(torch.rand(2, channels, frames, 16, 16))
            out.float().square().sum().backward()
            for parameter in module.parameters():
                assert parameter.grad.isfinite().all()


def test_parameters_and_buffers_are_those_of_the_plain_modules():
    stem = stem_of()
    plain = nn.ModuleDict({"conv": nn.Conv3d(3, 6, 3, padding=1), "bn": nn.BatchNorm3d(6)})
    plain.load_state_dict(stem.state_dict())
    assert stem.state_dict().keys() == plain.state_dict().keys()


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 3 * CHUNK), shift=st.sampled_from([0.0, 1.0, -3.0]), spread=st.sampled_from([0.01, 1.0, 50.0])
)
def test_moments_are_exact_far_from_zero_and_over_many_chunks(rows, shift, spread):
    rows_NC = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows)) * spread + shift
    mean_C, variance_C = _moments(rows_NC)
    expected, mean = torch.var_mean(rows_NC.double(), 0, correction=0)
    torch.testing.assert_close(mean_C.double(), mean, rtol=1e-6, atol=1e-6 * spread)
    torch.testing.assert_close(variance_C.double(), expected, rtol=1e-4, atol=1e-12)
