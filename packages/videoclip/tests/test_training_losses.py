"""Each part of the loss by hand, who takes part in it, and that it stays finite whatever a batch lacks."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from videoclip.config import LossConfig, ModelConfig
from videoclip.models import Output, VideoAttentionCLIP
from videoclip.training.losses import VideoClipLoss, cross_entropy, token_loss

PLAIN = ModelConfig(lambda_token=0, lambda_guide=1)


def output_of(batch, *, seed=0, width=8):
    """Embeddings and logits at random, tokens on a grid of 2×4×4, all with gradients."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator).requires_grad_()  # noqa: E731
    features = draw(batch, 5), draw(batch, 5)
    embeddings = draw(batch, width), draw(batch, width)
    tokens, valid = draw(batch, 64, 2, 4, 4), torch.ones(batch, dtype=torch.bool)
    predicted = torch.rand(batch, 1, 2, 4, 4, generator=generator).requires_grad_()
    return Output(draw(batch, 3), *embeddings, *features, tokens, None, valid, valid, predicted, None)


def batch_of(batch, **changes):
    maps = torch.rand(batch, 1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    subjects = torch.arange(batch)
    given = {"map_BCTHW": maps, "label_B": subjects % 3, "subject_B": subjects, "regions_B": subjects, "scale": 10.0}
    return given | changes


def plain_contrast(output, *, scale=10.0, exclude=None, positive=None):
    """InfoNCE both ways from the whole matrix."""
    v, a = (torch.nn.functional.normalize(side, dim=1) for side in (output.video_embed, output.attn_embed))
    z, pairs = scale * v @ a.T, torch.eye(len(v), dtype=torch.bool)
    same = lambda ids: ids[:, None] == ids if ids is not None else torch.zeros_like(pairs)  # noqa: E731
    positives = pairs | same(positive)
    negatives = ~positives & ~same(exclude)
    sides = []
    for logits, good, bad in ((z, positives, negatives), (z.T, positives.T, negatives.T)):
        total = logits.exp().mul(good | bad).sum(1).log()
        sides.append((total - (logits * good).sum(1) / good.sum(1)).mean())
    return (sides[0] + sides[1]) / 2


def test_the_total_weighs_its_parts():
    output, batch = output_of(4), batch_of(4)
    weights = replace(PLAIN, lambda_token=0.3, lambda_guide=0.2)
    found = VideoClipLoss(LossConfig(clip_weight=0.5), token_config=weights)(output, **batch)
    own = found.classification + 0.5 * found.contrastive + 0.3 * found.token + 0.2 * found.guide
    torch.testing.assert_close(found.total, own)
    assert all(part > 0.01 for name, part in found.parts.items() if name != "distillation")
    assert set(found.parts) == {"classification", "contrastive", "token", "guide", "distillation"}


def test_chance_is_the_loss_of_maps_that_are_all_alike():
    """ln of the number of candidates: 4, and 3 for the two clips of one subject."""
    output, loss = output_of(4), VideoClipLoss(LossConfig(), token_config=PLAIN)
    assert loss(output, **batch_of(4)).contrastive_chance.item() == pytest.approx(math.log(4))
    twice = batch_of(4, subject_B=torch.tensor([0, 0, 1, 2]))
    assert loss(output, **twice).contrastive_chance.item() == pytest.approx((math.log(4) + math.log(3)) / 2)


def test_the_guide_loss_is_the_token_losss_formula_of_the_predicted_map():
    for kind in ("corr", "kl", "mse"):
        weights = replace(PLAIN, guide_loss=kind)
        output, batch = output_of(3), batch_of(3)
        found = VideoClipLoss(LossConfig(), token_config=weights)(output, **batch)
        tokens = output.predicted_map.detach().sqrt()  # whose energy it is
        expected = token_loss(tokens, batch["map_BCTHW"], valid_B=output.map_valid, kind=kind)
        torch.testing.assert_close(found.guide, expected)
        (gradient,) = torch.autograd.grad(found.guide, output.predicted_map)
        assert gradient.abs().sum() > 0


def test_cross_entropy_leaves_unknown_labels_out():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [9.0, 9.0, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0, 1, -1]))
    by_hand = (-math.log(math.e**2 / (math.e**2 + 2)) + math.log(3)) / 2
    assert loss.item() == pytest.approx(by_hand)
    unknown = cross_entropy(logits, torch.tensor([-1, -1, -1]))
    unknown.backward()
    assert unknown == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("exclude", ["subject", "none"])
@pytest.mark.parametrize("positive", ["regions", "none"])
def test_subjects_are_excluded_and_regions_are_positives(exclude, positive):
    subject, regions = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([7, 8, 7, 9, 10])
    loss = VideoClipLoss(LossConfig(exclude=exclude, positive=positive), token_config=PLAIN)
    output = output_of(5)
    found = loss(output, **batch_of(5, subject_B=subject, regions_B=regions)).contrastive
    expected = plain_contrast(
        output,
        exclude=subject if exclude == "subject" else None,
        positive=regions if positive == "regions" else None,
    )
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(part, output.video_embed, retain_graph=True)[0] for part in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_clips_without_a_map_take_no_part_in_the_alignment():
    output, subject = output_of(5), torch.tensor([0, 1, 2, 3, 4])
    kept = torch.tensor([True, False, True, True, False])
    loss = VideoClipLoss(LossConfig(), token_config=PLAIN)
    found = loss(replace(output, map_valid=kept), **batch_of(5, subject_B=subject)).contrastive
    part = replace(output, video_embed=output.video_embed[kept], attn_embed=output.attn_embed[kept])
    torch.testing.assert_close(found, plain_contrast(part))
    found.backward()
    assert (output.video_embed.grad[~kept] == 0).all()
    assert (output.video_embed.grad[kept].abs().sum(1) > 0).all()


@pytest.mark.parametrize("case", ["one subject", "one clip", "no map"])
def test_without_a_negative_the_alignment_is_zero_with_zero_gradient(case):
    output = output_of(1 if case == "one clip" else 4)
    size = len(output.logits)
    batch = batch_of(size, subject_B=torch.zeros(size, dtype=torch.long)) if case == "one subject" else batch_of(size)
    if case == "no map":
        output = replace(output, map_valid=torch.zeros(size, dtype=torch.bool))
    scale = torch.tensor(10.0, requires_grad=True)
    found = VideoClipLoss(LossConfig(), token_config=PLAIN)(output, **batch | {"scale": scale})
    found.total.backward()
    assert found.contrastive == 0
    for tensor in (output.video_embed, output.attn_embed, scale):
        assert (tensor.grad == 0).all()  # a gradient, and not None: DDP waits for one


def test_what_has_no_weight_leaves_no_gradient():
    output = output_of(4)
    weights = replace(PLAIN, lambda_guide=0)
    found = VideoClipLoss(LossConfig(clip_weight=0), token_config=weights)(output, **batch_of(4))
    found.total.backward()
    assert found.contrastive == found.token == found.guide == 0
    assert output.predicted_map.grad is None
    assert output.video_embed.grad is None
    assert output.video_tokens.grad is None
    assert output.logits.grad.abs().sum() > 0


# a map on a grid of 1×1×4 and tokens of one channel: energies are their squares
ENERGY = torch.tensor([1.0, 4.0, 0.0, 9.0])
MAP = torch.tensor([0.2, 0.2, 0.0, 1.0])


def tokens_of(energy):
    return energy.sqrt().view(-1, 1, 1, 1, 4).requires_grad_()


def maps_of(values):
    return values.view(-1, 1, 1, 1, 4)


def test_the_correlation_by_hand():
    found = token_loss(tokens_of(ENERGY), maps_of(MAP), valid_B=torch.tensor([True]))
    assert found.item() == pytest.approx(1 - np.corrcoef(ENERGY, MAP)[0, 1], abs=1e-6)
    same = token_loss(tokens_of(3 * MAP + 1), maps_of(MAP), valid_B=torch.tensor([True]))
    assert same.item() == pytest.approx(0, abs=1e-6)
    opposite = token_loss(tokens_of(2 - MAP), maps_of(MAP), valid_B=torch.tensor([True]))
    assert opposite.item() == pytest.approx(2, abs=1e-6)


def test_the_divergence_by_hand():
    found = token_loss(tokens_of(ENERGY), maps_of(MAP), valid_B=torch.tensor([True]), kind="kl")
    p, q = np.array([1 / 7, 1 / 7, 5 / 7]), np.array([1 / 14, 4 / 14, 9 / 14])  # of the third token both are zero
    assert found.item() == pytest.approx((p * np.log(p / q)).sum(), abs=1e-4)
    proportional = token_loss(tokens_of(5 * MAP), maps_of(MAP), valid_B=torch.tensor([True]), kind="kl")
    assert proportional.item() == pytest.approx(0, abs=1e-5)
    silent = token_loss(tokens_of(ENERGY.flip(0)), maps_of(MAP), valid_B=torch.tensor([True]), kind="kl")
    assert math.isfinite(silent.item())


def test_the_difference_by_hand():
    found = token_loss(tokens_of(ENERGY), maps_of(MAP), valid_B=torch.tensor([True]), kind="mse")
    by_hand = ((1 / 9 - 0.2) ** 2 + (4 / 9 - 0.2) ** 2 + 0 + 0) / 4
    assert found.item() == pytest.approx(by_hand, abs=1e-6)


def test_the_energy_is_the_mean_over_channels_and_the_map_goes_to_the_grid():
    tokens = torch.stack([ENERGY, 3 * ENERGY], dim=0).sqrt().view(1, 2, 1, 1, 4)
    maps = maps_of(MAP).repeat_interleave(2, dim=4).repeat_interleave(2, dim=3).repeat_interleave(2, dim=2)
    for kind in ("corr", "kl", "mse"):
        found = token_loss(tokens, maps, valid_B=torch.tensor([True]), kind=kind)
        expected = token_loss(tokens_of(ENERGY), maps_of(MAP), valid_B=torch.tensor([True]), kind=kind)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["corr", "kl", "mse"])
def test_what_has_no_shape_is_left_out(kind):
    energies = torch.stack([ENERGY, torch.full((4,), 2.0), ENERGY, torch.zeros(4), ENERGY])
    maps = torch.stack([MAP, MAP, torch.full((4,), 0.3), MAP, MAP])
    tokens = energies.sqrt().view(5, 1, 1, 1, 4).requires_grad_()
    valid = torch.tensor([True, True, True, True, False])
    found = token_loss(tokens, maps_of(maps), valid_B=valid, kind=kind)
    alone = token_loss(tokens[:1], maps_of(maps)[:1], valid_B=valid[:1], kind=kind)
    torch.testing.assert_close(found, alone)
    found.backward()
    assert tokens.grad.isfinite().all()
    assert (tokens.grad[1:] == 0).all()
    assert tokens.grad[0].abs().sum() > 0
    nothing = token_loss(tokens[1:], maps_of(maps)[1:], valid_B=valid[1:], kind=kind)
    assert nothing == 0


@pytest.mark.parametrize("kind", ["corr", "kl", "mse"])
def test_minimised_it_makes_the_energy_follow_the_map(kind):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.rand(2, 4, 2, 4, 4, generator=generator).requires_grad_()
    maps, valid = torch.rand(2, 1, 4, 8, 8, generator=generator), torch.tensor([True, True])
    optimizer = torch.optim.Adam([tokens], lr=0.02)
    start = token_loss(tokens, maps, valid_B=valid).item()
    for _ in range(150):
        optimizer.zero_grad()
        token_loss(tokens, maps, valid_B=valid, kind=kind).backward()
        optimizer.step()
    assert start > 0.7
    assert token_loss(tokens, maps, valid_B=valid).item() < 0.1


def test_gated_tokens_follow_the_map_by_themselves():
    output = replace(output_of(3), token_gain=None)
    batch = batch_of(3)
    gain = 1 + 5 * torch.nn.functional.interpolate(batch["map_BCTHW"], size=(2, 4, 4), mode="trilinear")
    output = replace(output, token_gain=gain)
    ungated, gated = (
        VideoClipLoss(LossConfig(), token_config=replace(PLAIN, lambda_token=1, token_source=source))(
            output, **batch
        ).token
        for source in ("ungated", "gated")
    )
    assert gated < 0.3 < ungated
    torch.testing.assert_close(
        gated, token_loss(output.video_tokens * gain, batch["map_BCTHW"], valid_B=output.map_valid)
    )


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 4),
    one_subject=st.booleans(),
    empty=st.sampled_from(["none", "first", "all"]),
    half=st.booleans(),
    known=st.booleans(),
    kind=st.sampled_from(["corr", "kl", "mse"]),
    guided=st.sampled_from(["spatiotemporal", "channel", "weighted_pool"]),
    guide=st.sampled_from(["map", "predicted", "mixed"]),
)
def test_the_whole_is_finite_with_finite_gradients(size, one_subject, empty, half, known, kind, guided, guide):
    torch.manual_seed(0)
    losses = {"lambda_token": 1, "token_loss": kind, "guide_loss": kind}
    config = ModelConfig(
        clip_feature_dim=8,
        clip_embed_dim=4,
        map_guided=True,
        map_guided_type=guided,
        guide="map" if guided == "channel" else guide,
        **losses,
    )
    model, maps = VideoAttentionCLIP(config), torch.rand(size, 1, 2, 16, 16)
    maps[: {"none": 0, "first": 1, "all": size}[empty]] = 0
    batch = batch_of(size, map_BCTHW=maps, scale=model.logit_scale())
    if one_subject:
        batch["subject_B"] = torch.zeros(size, dtype=torch.long)
    if not known:
        batch["label_B"] = torch.full((size,), -1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = VideoClipLoss(LossConfig(positive="regions"), token_config=config)(
            model(torch.randn(size, 3, 2, 16, 16), maps), **batch
        )
    found.total.backward()
    assert found.total.isfinite()
    assert all(part.dtype == torch.float32 for part in found.parts.values())
    for name, parameter in model.named_parameters():
        if not name.startswith("attn_encoder.head"):  # which the grid leaves out
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def shared():
    """Four clips with subjects and regions that two processes share; the last one's map counts, or does not."""
    return batch_of(4, subject_B=torch.tensor([0, 1, 2, 0]), regions_B=torch.tensor([5, 6, 7, 6]))


def alignment(rows, *, last):
    """(loss, gradient of the videos' embeddings) of some of the four clips."""
    whole, kept = output_of(4, seed=3), torch.tensor([True, True, False, last])
    video = whole.video_embed.detach()[rows].requires_grad_()
    part = {"video_embed": video, "attn_embed": whole.attn_embed[rows], "map_valid": kept[rows]}
    output = replace(whole, logits=whole.logits[rows], predicted_map=None, **part)
    mine = {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in shared().items()}
    loss = VideoClipLoss(LossConfig(positive="regions"), token_config=PLAIN)(output, **mine).contrastive
    loss.backward()
    return loss.detach(), video.grad


def _rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = slice(0, 3) if rank == 0 else slice(3, 4)
    torch.save([alignment(rows, last=last) for last in (True, False)], f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort the process now and then if the interpreter ends beside them


def test_over_two_processes_it_is_the_alignment_of_all_clips(tmp_path, monkeypatch):
    """Subjects and regions are compared across processes; one of them may have no clip with a map."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in (0, 1)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for last, *found in zip((True, False), *ranks, strict=True):
        loss, gradient = alignment(slice(0, 4), last=last)
        for part, _ in found:
            torch.testing.assert_close(part, loss)
        torch.testing.assert_close(torch.cat([grad / 2 for _, grad in found]), gradient)  # which DDP averages


if __name__ == "__main__":  # one of the two processes
    _rank(int(sys.argv[1]), sys.argv[2])
