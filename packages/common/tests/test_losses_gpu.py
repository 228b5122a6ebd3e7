"""Losses on a GPU: the values and gradients of the CPU, and nothing that waits for the GPU in a training step."""

import pytest
import torch
from toy_losses import batch, imagined_gpu

from clip_common.losses import Decoupled, HardNegative, InfoNCE, LogitScale, Matryoshka, SigLIP, contrastive_loss

FORMS = [InfoNCE(), SigLIP(), Decoupled(), HardNegative(), Matryoshka(dims=(5, 2))]
without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.gpu
@without_gpu
@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize("tile", [None, 5])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_losses_and_gradients_are_those_of_the_cpu(form, tile):
    found = []
    for device in ("cpu", "cuda"):
        x, y = (side.detach().to(device).requires_grad_() for side in batch())
        loss = form(x, y, scale=6.0, tile=tile)
        found.append([part.cpu() for part in (loss, *torch.autograd.grad(loss, (x, y)))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize("tile", [None, 64])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_no_step_waits_for_the_gpu(form, tile):
    x, y = (side.detach().cuda().requires_grad_() for side in batch(rows=256, width=8, dtype=torch.float32))
    scale = LogitScale().cuda()
    contrastive_loss(x, y, scale=scale(), form=form, tile=tile).backward()  # loads the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        contrastive_loss(x, y, scale=scale(), form=form, tile=tile).backward()
        contrastive_loss(x, y, scale=6.0, form=form, tile=tile).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_no_loss_needs_a_value_that_a_gpu_would_have_to_be_waited_for(form):
    with imagined_gpu():
        x, y, scale = (torch.ones(size, device="cuda") for size in ((64, 8), (64, 8), ()))
        assert contrastive_loss(x, y, scale=6.0, form=form, tile=32).shape == ()
        assert contrastive_loss(x, y, scale=scale, form=form, exclude=torch.zeros(64, device="cuda")).shape == ()
