"""Which way a loss is computed must not show: what is kept or made again, which inputs learn, how it is stabilised."""

import shutil

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid, normalize

from clip_common.losses import (
    Boosted,
    Guided,
    HardNegative,
    InfoNCE,
    Matryoshka,
    SigLIP,
    contrastive_loss,
    pair_softplus,
)
from clip_common.losses.reductions import _compiled, _softmax_slope


def batch(rows: int = 17, width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=random, dtype=dtype)
    y = x + torch.randn(rows, width, generator=random, dtype=dtype)
    return x.requires_grad_(), y.requires_grad_()


@pytest.mark.parametrize("scale", [39.0, 41.0, 100.0])
def test_both_ways_of_stabilising_the_exponentials_equal_cross_entropy(scale):
    x, y = batch(dtype=torch.float32)
    z, labels = scale * normalize(x, dim=1) @ normalize(y, dim=1).T, torch.arange(17)
    theirs = (cross_entropy(z, labels) + cross_entropy(z.T, labels)) / 2
    ours = InfoNCE()(x, y, scale=scale)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=2e-6)
    for one, other in zip(torch.autograd.grad(ours, (x, y)), torch.autograd.grad(theirs, (x, y)), strict=True):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=1e-5)


def test_logits_that_span_the_whole_range_of_float32_neither_overflow_nor_vanish():
    eye = torch.eye(4, dtype=torch.float64)
    x, y = torch.cat([eye, eye]), torch.cat([eye, -eye])  # negatives at -100, 0 and 100 in one batch
    theirs = InfoNCE()(x, y, scale=100.0)
    torch.testing.assert_close(InfoNCE()(x.float(), y.float(), scale=100.0).double(), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", [InfoNCE(), Matryoshka(dims=(5, 2))], ids=str)
def test_a_second_backward_through_a_kept_tile_gives_the_same_gradients(form):
    x, y = batch()
    loss = form(x, y, scale=6.0)
    first = torch.autograd.grad(loss, (x, y), retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, (x, y)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("form", [InfoNCE(), Matryoshka(SigLIP(), dims=(5, 2)), HardNegative()], ids=str)
@pytest.mark.parametrize("tile", [None, 5])
def test_what_is_locked_changes_no_other_gradient(form, tile):
    x, y = batch()
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    whole = torch.autograd.grad(form(x, y, scale=scale, tile=tile), (x, y, scale))
    (only_x,) = torch.autograd.grad(form(x, y.detach(), scale=6.0, tile=tile), (x,))
    (only_y,) = torch.autograd.grad(form(x.detach(), y, scale=6.0, tile=tile), (y,))
    (only_scale,) = torch.autograd.grad(form(x.detach(), y.detach(), scale=scale, tile=tile), (scale,))
    for one, other in zip((only_x, only_y, only_scale), whole, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tile", [None, 5])
@pytest.mark.parametrize("learns", ["x y scale", "x scale", "y scale", "scale"])
@pytest.mark.parametrize(
    "form", [InfoNCE(), SigLIP(), Matryoshka(SigLIP(), dims=(5, 2)), Matryoshka(Boosted(), dims=(5,))], ids=str
)
def test_a_scale_of_zero_has_the_gradients_of_finite_differences(form, learns, tile):
    x, y = (side.detach().requires_grad_(name in learns.split()) for side, name in zip(batch(), "xy", strict=True))
    ids, scale = torch.arange(17) % 9, torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    for keywords in ({}, {"exclude": ids}, {"positive": ids}):
        inputs = [tensor for tensor in (x, y, scale) if tensor.requires_grad]
        found = torch.autograd.grad(form(x, y, scale=scale, tile=tile, **keywords), inputs)
        with torch.no_grad():
            above, below = (form(x, y, scale=s, tile=tile, **keywords) for s in (1e-5, -1e-5))
        torch.testing.assert_close(found[-1], (above - below) / 2e-5, rtol=1e-7, atol=1e-9)
        for gradient in found[:-1]:
            torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_references_are_checked_even_where_nothing_reads_them():
    x, y = batch()
    for references, said in {
        (torch.ones(3, 4), torch.ones(17, 4)): r"shapes \[\(3, 4\), \(17, 4\)\]: give B of each",
        (torch.ones(17), torch.ones(17)): r"shapes \[\(17,\), \(17,\)\]",
        (torch.ones(17, 4, 2), torch.ones(17, 4, 2)): r"\(17, 4, 2\)",
    }.items():
        for form in (InfoNCE(), SigLIP(), Guided()):
            with pytest.raises(ValueError, match=said):
                form(x, y, scale=1.0, references=references)
    with pytest.raises(ValueError, match=r"a guide compares references of x with references of y.* one width"):
        Guided()(x, y, scale=1.0, references=(torch.ones(17, 4), torch.ones(17, 5)))


@pytest.mark.parametrize("form", ["SigLipLoss", "ClipLoss"])
def test_open_clips_losses_in_float64_agree_to_1e_12_with_gradients(form):
    loss = pytest.importorskip("open_clip.loss", reason="open_clip is not installed")
    x, y = batch(rows=33)
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (10.0, -10.0))
    sides = [normalize(side, dim=1) for side in (x, y)]
    theirs = loss.ClipLoss()(*sides, scale) if form == "ClipLoss" else loss.SigLipLoss()(*sides, scale, bias)
    ours = (InfoNCE() if form == "ClipLoss" else SigLIP())(x, y, scale=scale, bias=bias)
    inputs = (x, y, scale) if form == "ClipLoss" else (x, y, scale, bias)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tile", [None, 5])
def test_ids_of_both_sides_pair_a_few_images_with_many_texts(tile):
    images, texts = batch()[0][:4], batch(seed=1)[1]
    image_ids, text_ids = torch.arange(4), torch.arange(17) % 4
    ours = InfoNCE()(images, texts, scale=6.0, positive=(image_ids, text_ids), tile=tile)
    z = 6.0 * normalize(images, dim=1) @ normalize(texts, dim=1).T
    target = (image_ids[:, None] == text_ids[None]).double()
    by_image = -(target / target.sum(1, keepdim=True) * log_softmax(z, dim=1)).sum(1)
    by_text = cross_entropy(z.T, text_ids, reduction="none")
    torch.testing.assert_close(ours, (by_image.mean() + by_text.mean()) / 2)


def test_a_row_whose_ids_name_no_positive_is_left_out_of_the_mean():
    images, texts = batch()
    ids = torch.arange(17)
    orphan = InfoNCE()(images, texts[:16], scale=6.0, positive=(ids, ids[:16]))
    z = 6.0 * normalize(images, dim=1) @ normalize(texts[:16], dim=1).T
    theirs = (cross_entropy(z[:16], ids[:16]) + cross_entropy(z.T, ids[:16])) / 2
    torch.testing.assert_close(orphan, theirs)


@pytest.mark.parametrize("tile", [None, 3])
def test_gradcheck_of_sigmoid_sums_and_of_nested_widths_in_float64(tile):
    x, y = batch(rows=6, width=4)
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (3.0, -1.0))
    ids = torch.tensor([0, 0, 1, 2, 3, 4])
    nested = Matryoshka(SigLIP(), dims=(3, 1))
    assert torch.autograd.gradcheck(
        lambda *inputs: nested(*inputs[:2], scale=inputs[2], bias=inputs[3], positive=ids, tile=tile),
        (x, y, scale, bias),
    )
    assert torch.autograd.gradcheck(
        lambda x, y, scale: Matryoshka(HardNegative(), dims=(3, 1))(x, y, scale=scale, exclude=ids, tile=tile),
        (x, y, scale),
    )


def test_the_sums_of_softplus_are_the_sigmoid_loss():
    x, y = batch()
    rows, columns = pair_softplus(x, y, scale=6.0, bias=-2.0)
    z = 6.0 * normalize(x, dim=1) @ normalize(y, dim=1).T - 2.0
    sign = 2 * torch.eye(17, dtype=torch.float64) - 1
    for side, theirs in ((rows, z), (columns, z.T)):
        torch.testing.assert_close(side.positive_lse + side.negative_lse, -logsigmoid(sign * theirs).sum(1))


def test_a_zero_vector_costs_what_it_says_nothing_and_gets_no_gradient():
    x, y = batch(4)
    x = torch.cat([x.detach()[:3], torch.zeros(1, 8, dtype=torch.float64)]).requires_grad_()
    loss = Matryoshka(dims=(4,))(x, y, scale=6.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()
    assert not x.grad[3].any()


def test_autocast_around_the_loss_or_its_backward_changes_nothing():
    x, y = batch(dtype=torch.float32)
    plain = torch.autograd.grad(InfoNCE()(x, y, scale=20.0, tile=5), (x, y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = torch.autograd.grad(InfoNCE()(x, y, scale=20.0, tile=5), (x, y))
    for one, other in zip(within, plain, strict=True):
        assert torch.equal(one, other)


def test_without_gradients_nothing_is_kept_and_the_loss_is_the_same():
    x, y = batch()
    with torch.no_grad():
        loss = contrastive_loss(x, y, scale=6.0)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, contrastive_loss(x, y, scale=6.0).detach())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiled_body_of_a_tile_is_the_body():
    tiles = [torch.randn(7, 9, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    rows, columns = [torch.rand(7) for _ in range(2)], [torch.rand(9) for _ in range(2)]
    arguments = (*tiles, rows[0], columns[0], rows[1], columns[1])
    ours = _compiled(_softmax_slope)(*arguments, torch.empty(7, 9), torch.empty(7, 9))
    torch.testing.assert_close(ours, _softmax_slope(*arguments, torch.empty(7, 9), torch.empty(7, 9)))
