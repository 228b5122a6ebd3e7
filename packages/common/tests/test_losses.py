"""Every loss against a few lines with the whole matrix in sight, dense and tiled, forward and backward."""

import math

import open_clip
import open_clip.loss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import log_softmax, normalize
from toy_losses import SCALE, TILES, batch, both_ways, logits, off_diagonal, same

from clip_common.losses import (
    Boosted,
    Debiased,
    Decoupled,
    Form,
    Guided,
    HardNegative,
    InfoNCE,
    LogitScale,
    Matryoshka,
    ModalitiesOutput,
    PairwiseModalities,
    SigLIP,
    cached,
    pair_softplus,
    pair_statistics,
)


@pytest.mark.parametrize("tile", TILES)
def test_infonce_is_open_clips_loss_with_gradients(tile):
    x, y = batch(dtype=torch.float32)
    scale = torch.tensor(14.0, requires_grad=True)
    theirs = open_clip.ClipLoss()(normalize(x, dim=1), normalize(y, dim=1), scale)
    same(InfoNCE()(x, y, scale=scale, tile=tile), theirs, x, y, scale)


@pytest.mark.parametrize("tile", TILES)
def test_siglip_is_open_clips_loss_with_gradients(tile):
    x, y = batch(dtype=torch.float32)
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-4.0, requires_grad=True)
    theirs = open_clip.loss.SigLipLoss()(normalize(x, dim=1), normalize(y, dim=1), scale, bias)
    same(SigLIP()(x, y, scale=scale, bias=bias, tile=tile), theirs, x, y, scale, bias)


def test_a_large_batch_takes_tiles_by_itself_and_stays_equal():
    x, y = batch(rows=1500, width=16, dtype=torch.float32)
    theirs = open_clip.ClipLoss()(normalize(x, dim=1), normalize(y, dim=1), torch.tensor(14.0))
    same(InfoNCE()(x, y, scale=14.0), theirs, x, y)
    same(InfoNCE()(x, y, scale=14.0, tile=256), theirs, x, y)


def decoupled(z: Tensor) -> Tensor:
    return z.masked_fill(~off_diagonal(z), -torch.inf).logsumexp(1) - z.diag()


def boosted(z: Tensor) -> Tensor:
    others = (off_diagonal(z) * z.exp()).sum(1)
    return (z.diag().exp() + 1.5 * others).log() - z.diag()


def debiased(z: Tensor, tau: float = 0.05) -> Tensor:
    others, count, positive = (off_diagonal(z) * z.exp()).sum(1), len(z) - 1, z.diag().exp()
    corrected = ((others - count * tau * positive) / (1 - tau)).clamp_min(count * math.exp(-SCALE))
    return (positive + corrected).log() - z.diag()


def hard_negative(z: Tensor, beta: float = 0.5, tau: float = 0.05) -> Tensor:
    weight, count, positive = off_diagonal(z) * (beta * z).exp(), len(z) - 1, z.diag().exp()
    others = count * (weight * z.exp()).sum(1) / weight.sum(1)
    corrected = ((others - count * tau * positive) / (1 - tau)).clamp_min(count * math.exp(-SCALE))
    return (positive + corrected).log() - z.diag()


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    ("form", "one_way"),
    [
        (Decoupled(), decoupled),
        (Boosted(beta=0.5), boosted),
        (Debiased(tau_plus=0.05), debiased),
        (HardNegative(beta=0.5, tau_plus=0.05), hard_negative),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Form) else "",
)
def test_a_form_is_its_formula_with_gradients(form, one_way, tile):
    x, y = batch()
    same(form(x, y, scale=SCALE, tile=tile), both_ways(one_way, logits(x, y)), x, y)


@pytest.mark.parametrize("positive", [None, torch.arange(17) % 3], ids=["one positive", "several"])
@pytest.mark.parametrize(
    "form", [Boosted(beta=0.0), Debiased(tau_plus=0.0), HardNegative(beta=0.0, tau_plus=0.0)], ids=str
)
def test_a_form_without_strength_is_infonce(form, positive):
    x, y = batch()
    same(form(x, y, scale=SCALE, positive=positive), InfoNCE()(x, y, scale=SCALE, positive=positive), x, y)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(
    ("form", "beta", "tau"),
    [(Debiased(tau_plus=0.05), 0.0, 0.05), (HardNegative(beta=0.5, tau_plus=0.05), 0.5, 0.05)],
    ids=["Debiased", "HardNegative"],
)
def test_several_positives_are_one_sum_and_their_mean_corrects_the_negatives(form, beta, tau, tile):
    x, y = batch()
    ids = torch.arange(17) % 5
    positive = (ids[:, None] == ids[None]).double()

    def tilted_mean(z: Tensor, of: Tensor) -> Tensor:
        return (of * ((1 + beta) * z).exp()).sum(1) / (of * (beta * z).exp()).sum(1)

    def one_way(z: Tensor) -> Tensor:
        p, n = positive.sum(1), (1 - positive).sum(1)
        corrected = n * (tilted_mean(z, 1 - positive) - tau * tilted_mean(z, positive)) / (1 - tau)
        corrected = corrected.clamp_min(n[0] * math.exp(-SCALE))
        return (p * tilted_mean(z, positive) + corrected).log() - (positive * z).sum(1) / p

    same(form(x, y, scale=SCALE, positive=ids, tile=tile), both_ways(one_way, logits(x, y)), x, y)


@pytest.mark.parametrize("tile", TILES)
def test_boosted_with_several_positives_is_its_formula(tile):
    x, y = batch()
    ids = torch.arange(17) % 5
    positive = (ids[:, None] == ids[None]).double()

    def one_way(z: Tensor) -> Tensor:
        return ((positive + 1.5 * (1 - positive)) * z.exp()).sum(1).log() - (positive * z).sum(1) / positive.sum(1)

    same(Boosted(beta=0.5)(x, y, scale=SCALE, positive=ids, tile=tile), both_ways(one_way, logits(x, y)), x, y)


@pytest.mark.parametrize("tile", TILES)
def test_a_guide_takes_out_what_it_finds_closer_than_the_positive(tile):
    x, y = batch()
    guides = tuple(side.detach() for side in batch(width=4, seed=9))
    g = normalize(guides[0], dim=1) @ normalize(guides[1], dim=1).T

    def one_way(z: Tensor, g: Tensor) -> Tensor:
        hidden = (g >= g.diag()[:, None]) & off_diagonal(z)
        assert 0.05 < hidden.double().mean() < 0.95
        return z.masked_fill(hidden, -torch.inf).logsumexp(1) - z.diag()

    same(Guided()(x, y, scale=SCALE, references=guides, tile=tile), both_ways(one_way, logits(x, y), g), x, y)


@pytest.mark.parametrize("tile", TILES)
def test_equal_ids_are_left_out_of_the_negatives(tile):
    x, y = batch()
    ids = torch.arange(17) // 3
    hidden = (ids[:, None] == ids[None]) & off_diagonal(x @ x.T)
    theirs = both_ways(lambda z: z.masked_fill(hidden, -torch.inf).logsumexp(1) - z.diag(), logits(x, y))
    same(InfoNCE()(x, y, scale=SCALE, exclude=ids, tile=tile), theirs, x, y)


@pytest.mark.parametrize("tile", TILES)
def test_equal_positive_ids_share_a_uniform_target(tile):
    x, y = batch()
    ids = torch.arange(17) % 5
    target = (ids[:, None] == ids[None]).double()
    target = target / target.sum(1, keepdim=True)
    theirs = both_ways(lambda z: -(target * log_softmax(z, dim=1)).sum(1), logits(x, y))
    same(InfoNCE()(x, y, scale=SCALE, positive=ids, tile=tile), theirs, x, y)


@pytest.mark.parametrize("tile", TILES)
def test_excluded_and_positive_ids_hold_at_once(tile):
    x, y = batch()
    subject, region = torch.arange(17) // 3, torch.arange(17) % 4
    positive = (region[:, None] == region[None]).double()
    negative = (subject[:, None] != subject[None]) & (positive == 0)

    def one_way(z: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        kept = z.masked_fill(~(negative | (positive > 0)), -torch.inf).logsumexp(1)
        return kept - (positive * z).sum(1) / positive.sum(1)

    theirs = both_ways(one_way, logits(x, y), positive, negative)
    same(InfoNCE()(x, y, scale=SCALE, exclude=subject, positive=region, tile=tile), theirs, x, y)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("form", [InfoNCE(), SigLIP(), Decoupled()], ids=str)
def test_matryoshka_is_the_sum_over_prefixes(form, tile):
    x, y = batch()
    weights = {6: 0.5, 3: 2.0, 1: 1.0}
    ours = Matryoshka(form, dims=(6, 3, 1), weights=(0.5, 2.0, 1.0), full=1.5, nested=0.25)(
        x, y, scale=SCALE, tile=tile
    )
    theirs = 1.5 * form(x, y, scale=SCALE)
    for width, weight in weights.items():
        theirs = theirs + 0.25 * weight * form(x[:, :width], y[:, :width], scale=SCALE)
    same(ours, theirs, x, y)


def test_matryoshka_counts_the_full_width_once_and_samples_to_the_same_expectation():
    x, y = batch()
    whole = Matryoshka(dims=(8, 4, 2))(x, y, scale=SCALE)
    torch.testing.assert_close(whole, Matryoshka(dims=(4, 2))(x, y, scale=SCALE))
    torch.manual_seed(0)
    sampled = [Matryoshka(dims=(8, 4, 2), dims_per_step=1)(x, y, scale=SCALE).item() for _ in range(200)]
    assert len({round(value, 6) for value in sampled}) == 2
    assert sum(sampled) / 200 == pytest.approx(whole.item(), rel=0.1)


@pytest.mark.parametrize("tile", [None, 3])
def test_gradcheck_of_the_statistics_in_float64(tile):
    x, y = batch(rows=7, width=4)
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    ids, more = torch.tensor([0, 0, 1, 2, 3, 4, 4]), torch.tensor([0, 1, 2, 3, 4, 5, 0])
    table = torch.randn(7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def statistics(x: Tensor, y: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            pair_statistics(
                x, y, scale=scale, log_weight=lambda i, j: table[i, j], exclude=ids, positive=more, tile=tile
            )
        )

    assert torch.autograd.gradcheck(statistics, (x, y, scale))


def test_the_statistics_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    rows, columns, positives = pair_statistics(x, torch.tensor([[1.0, 0.0], [0.6, 0.8]]), scale=10.0)
    # z = [[10, 6], [0, 8]]
    assert rows.tolist() == pytest.approx([6.0, 0.0], abs=1e-5)
    assert columns.tolist() == pytest.approx([0.0, 6.0], abs=1e-5)
    assert positives.tolist() == pytest.approx([10.0, 8.0])


FORMS = [InfoNCE(), SigLIP(), Decoupled(), Boosted(), Debiased(), HardNegative(), Guided(), Matryoshka(dims=(4, 2))]


@given(st.integers(1, 12), st.sampled_from(FORMS), st.integers(0, 30))
@settings(deadline=None, max_examples=60)
def test_the_order_of_pairs_does_not_matter_and_nothing_is_ever_nan(rows, form, seed):
    x, y = batch(rows, seed=seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    one = form(x, y, scale=100.0, tile=4)
    gradients = torch.autograd.grad(one, (x, y))
    assert all(torch.isfinite(part).all() for part in (one, *gradients))
    torch.testing.assert_close(form(x[order], y[order], scale=100.0), one)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("case", ["one", "two", "duplicates", "excluded", "left out", "bfloat16"])
def test_the_ends_of_what_can_be_asked(form, case):
    x, y = batch({"one": 1, "two": 2}.get(case, 6), dtype=torch.bfloat16 if case == "bfloat16" else torch.float32)
    if case == "duplicates":
        x, y = (side.detach()[:1].repeat(6, 1).requires_grad_() for side in (x, y))
    exclude = torch.tensor([0, 1, 1, 1, 1, 1]) if case == "excluded" else None
    positive = None
    if case == "left out":  # row 5 has no positive, and no negative either; column 5 has no positive
        positive = torch.tensor([0, 1, 2, 3, 4, 8]), torch.tensor([0, 1, 2, 3, 4, 9])
        exclude = torch.tensor([0, 0, 0, 0, 0, 7]), torch.full((6,), 7)
    loss = form(x, y, scale=20.0, exclude=exclude, positive=positive)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(y.grad).all()
    assert x.grad.dtype == x.dtype


def test_a_row_without_negatives_costs_nothing_and_duplicates_cost_ln_b():
    x, y = batch(4)
    assert InfoNCE()(x, y, scale=10.0, exclude=torch.zeros(4)).item() == pytest.approx(0.0, abs=1e-9)
    twins = x.detach()[:1].repeat(4, 1)
    assert InfoNCE()(twins, twins, scale=10.0).item() == pytest.approx(math.log(4))


def test_bfloat16_inputs_are_compared_in_float32():
    x, y = batch(64, width=32, dtype=torch.bfloat16)
    wide = InfoNCE()(x.float(), y.float(), scale=50.0)
    torch.testing.assert_close(InfoNCE()(x, y, scale=50.0), wide)


def test_the_learned_scale_starts_where_clip_starts_and_is_clamped():
    scale = LogitScale()
    assert scale().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        scale.logit_scale.fill_(9.0)
    scale.clamp_()
    assert scale().item() == pytest.approx(100.0)
    assert list(LogitScale(learned=False).parameters()) == []


def test_modalities_are_the_sum_over_pairs_of_those_that_have_both():
    image, text = batch(seed=1)
    audio, _ = batch(seed=2)
    heard = torch.arange(17) % 2 == 0
    loss = PairwiseModalities({("image", "text"): 1.0, ("audio", "text"): 0.5}, init=math.log(SCALE))
    output = loss({"image": image, "text": text, "audio": audio}, present={"audio": heard})
    theirs = InfoNCE()(image, text, scale=SCALE) + 0.5 * InfoNCE()(audio[heard], text[heard], scale=SCALE)
    same(output.loss, theirs, image, text, audio)
    silent = loss({"image": image, "text": text, "audio": audio}, present={"audio": torch.zeros(17, dtype=torch.bool)})
    torch.testing.assert_close(silent.loss, InfoNCE()(image, text, scale=SCALE))
    silent.loss.backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())  # DDP waits for every one


def test_a_cached_loss_is_the_loss_with_gradients_and_dropout():
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(
        torch.nn.Linear(5, 16), torch.nn.GELU(), torch.nn.Dropout(0.3), torch.nn.Linear(16, 4)
    )
    x, y = torch.randn(10, 5), torch.randn(10, 5)

    def gradients(loss: Tensor) -> tuple[Tensor, ...]:
        return loss, *torch.autograd.grad(loss, tuple(encoder.parameters()))

    torch.manual_seed(3)
    chunked = gradients(cached(InfoNCE(), mini_batch=4)((encoder, x), (encoder, y), scale=SCALE))
    torch.manual_seed(3)
    parts = [torch.cat([encoder(part) for part in side.split(4)]) for side in (x, y)]
    whole = gradients(InfoNCE()(*parts, scale=SCALE))
    for one, other in zip(chunked, whole, strict=True):
        torch.testing.assert_close(one, other)


def modalities(image: Tensor, text: Tensor, **keywords) -> ModalitiesOutput:
    return PairwiseModalities({("image", "text"): 1.0})({"image": image, "text": text}, **keywords)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x, y: InfoNCE()(x, y[:5], scale=1.0), "row i of x is paired"),
        (lambda x, y: InfoNCE()(x[:, :3], y, scale=1.0), "width"),
        (lambda x, y: Matryoshka(dims=(2, 4)), "each smaller"),
        (lambda x, y: Matryoshka(dims=(16,))(x, y, scale=1.0), "exceed"),
        (lambda x, y: Debiased(tau_plus=1.0), "tau_plus"),
        (lambda x, y: PairwiseModalities({}), "empty"),
        (lambda x, y: InfoNCE()(x, y, scale=1.0, exclude=torch.zeros(1)), r"exclude .* ids \(1,\) and \(1,\)"),
        (lambda x, y: InfoNCE()(x, y, scale=1.0, positive=torch.zeros(20)), r"positive .* ids \(20,\)"),
        (lambda x, y: InfoNCE()(x, y[:5], scale=1.0, positive=(torch.arange(17), torch.arange(6))), r"and \(6,\)"),
        (lambda x, y: InfoNCE()(x, y, scale=1.0, tile=-1), "tile must be at least 1"),
        (lambda x, y: pair_statistics(x, y[:5], scale=1.0), "row i of x is paired"),
        (lambda x, y: pair_softplus(x, y, scale=1.0, exclude=torch.zeros(1)), "exclude"),
        (
            lambda x, y: modalities(x, y, present={"adio": torch.ones(17)}),
            "unknown modalities adio",
        ),
        (lambda x, y: modalities(x, y[:8]), "17 of image, 8 of text"),
        (lambda x, y: modalities(x, y, present={"text": torch.ones(1)}), "1 of present of text"),
        (lambda x, y: modalities(x, y, exclude=torch.zeros(1)), "1 of exclude"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call(*batch())
    assert "\n" not in str(error.value)
