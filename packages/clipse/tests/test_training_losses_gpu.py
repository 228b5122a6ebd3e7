"""SANW on a GPU: the values and gradients of the CPU, and nothing that waits for the GPU, the statistics included."""

import pytest
import torch
from torch.nn.functional import normalize
from toy_losses import imagined_gpu

from clipse.training.losses import RetrievalLoss, SANWBandpass, SANWDebias

WEIGHTINGS = [SANWDebias(alpha=0.7), SANWBandpass(m1=-0.2, m2=0.5)]
without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def batch(device: str, rows: int = 300) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    image = normalize(torch.randn(rows, 16), dim=1)
    text = normalize(image + 0.5 * torch.randn(rows, 16), dim=1)
    return image.to(device).requires_grad_(), text.to(device).requires_grad_(), (torch.arange(rows) // 2).to(device)


@pytest.mark.gpu
@without_gpu
@pytest.mark.usefixtures("exact_products")
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_loss_statistics_and_gradients_are_those_of_the_cpu(weighting):
    found = []
    for device in ("cpu", "cuda"):
        image, text, ids = batch(device)
        output = RetrievalLoss(weighting)(image, text, scale=10.0, image_ids=ids)
        gradients = torch.autograd.grad(output.loss, (image, text))
        found.append([part.cpu() for part in (output.loss, *gradients, *output.statistics.values())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@without_gpu
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_no_step_waits_for_the_gpu(weighting):
    image, text, ids = batch("cuda")
    scale = torch.tensor(10.0, device="cuda", requires_grad=True)

    def step():
        RetrievalLoss(weighting)(image, text, scale=scale, image_ids=ids).loss.backward()

    step()  # loads the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_no_loss_needs_a_value_that_a_gpu_would_have_to_be_waited_for(weighting):
    with imagined_gpu():
        image, text, scale, ids = (torch.ones(size, device="cuda") for size in ((300, 8), (300, 8), (), (300,)))
        output = RetrievalLoss(weighting)(image, text, scale=scale, image_ids=ids)
        assert output.loss.shape == output.statistics["w_p50"].shape == ()
