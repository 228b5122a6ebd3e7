"""The Perceiver resampler against a short reference with its attention matrix in sight, and its masks."""

import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear

from edgeglass.models.perceiver import PerceiverResampler

WIDTH, HEADS = 12, 3
FILLERS = [7.5, float("nan"), float("inf"), -float("inf")]
MASK = torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 5])


def perceiver(seed: int = 0, **sizes) -> PerceiverResampler:
    torch.manual_seed(seed)
    model = PerceiverResampler(WIDTH, **{"latents": 4, "layers": 2, "heads": HEADS, "ff_mult": 2} | sizes)
    for parameter in model.parameters():  # norms too, which start as identities
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def reference(model: PerceiverResampler, x_LD: torch.Tensor) -> torch.Tensor:
    """The latents (K, D) of one sequence, head by head, from the weights by name."""
    weights = dict(model.named_parameters())
    latents = weights["latents_KD"]
    for layer in range(len(model.blocks)):
        w = {name.removeprefix(f"blocks.{layer}."): part for name, part in weights.items()}
        queries = layer_norm(latents, (WIDTH,), w["norm_latents.weight"], w["norm_latents.bias"])
        media = layer_norm(x_LD, (WIDTH,), w["norm_media.weight"], w["norm_media.bias"])
        keys_values = torch.cat([media, queries]) @ w["to_key_value.weight"].T
        q, k, v = queries @ w["to_query.weight"].T, keys_values[:, :WIDTH], keys_values[:, WIDTH:]
        heads = []
        for head in range(HEADS):
            d = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
            heads.append((q[:, d] @ k[:, d].T / (WIDTH // HEADS) ** 0.5).softmax(dim=1) @ v[:, d])
        latents = latents + torch.cat(heads, dim=1) @ w["to_out.weight"].T
        hidden = layer_norm(latents, (WIDTH,), w["feed_forward.0.weight"], w["feed_forward.0.bias"])
        hidden = gelu(linear(hidden, w["feed_forward.1.weight"], w["feed_forward.1.bias"]))
        latents = latents + linear(hidden, w["feed_forward.3.weight"], w["feed_forward.3.bias"])
    return layer_norm(latents, (WIDTH,), weights["norm.weight"], weights["norm.bias"])


def sequences(filler: float = 0.0, *, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    x_BLD = torch.cat([random.masked_fill(~MASK[..., None], filler), torch.full((3, padding, WIDTH), filler)], dim=1)
    return x_BLD.requires_grad_(), torch.cat([MASK, torch.zeros(3, padding, dtype=torch.bool)], dim=1)


def run(model: PerceiverResampler, x_BLD: torch.Tensor, mask_BL: torch.Tensor) -> list[torch.Tensor]:
    latents_BKD = model(x_BLD, mask_BL)
    weights = torch.randn(latents_BKD.shape, generator=torch.Generator().manual_seed(2))
    return [latents_BKD, *torch.autograd.grad((latents_BKD * weights).sum(), [x_BLD, *model.parameters()])]


def test_it_is_the_reference_on_the_tokens_that_count():
    model, (x_BLD, mask_BL) = perceiver(), sequences(float("nan"))
    expected = torch.stack([reference(model, x[mask]) for x, mask in zip(x_BLD, mask_BL, strict=True)])
    torch.testing.assert_close(model(x_BLD, mask_BL), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(x_BLD[:1]), expected[:1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("filler", FILLERS)
@pytest.mark.parametrize("padding", [0, 4])
def test_masked_tokens_change_nothing_and_get_no_gradient(filler, padding):
    model = perceiver()
    expected = run(model, *sequences())
    found = run(model, *sequences(filler, padding=padding))
    assert (found[1][~sequences(padding=padding)[1]] == 0).all()
    found[1] = found[1][:, :5]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_row_without_tokens_gives_what_the_latents_alone_do():
    model = perceiver()
    nothing_LD = torch.empty(0, WIDTH)
    x_BLD, mask_BL = sequences(float("nan"))
    torch.testing.assert_close(model(x_BLD, mask_BL)[2], reference(model, nothing_LD), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(nothing_LD[None])[0], reference(model, nothing_LD), atol=1e-5, rtol=1e-5)


def test_any_length_gives_the_same_number_of_latents():
    model = perceiver(latents=3)
    assert model(torch.randn(2, 1, WIDTH)).shape == model(torch.randn(2, 50, WIDTH)).shape == (2, 3, WIDTH)


def test_every_parameter_learns():
    model = perceiver()
    gradients = run(model, *sequences())[2:]
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert gradient.abs().max() > 0, name


def test_under_autocast_the_latents_stay_float32_between_blocks():
    model, (x_BLD, mask_BL) = perceiver(layers=6), sequences()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow_BKD = model(x_BLD.bfloat16(), mask_BL)
    assert seen == [torch.float32] * 6
    torch.testing.assert_close(narrow_BKD.float(), model(x_BLD, mask_BL), atol=0.15, rtol=0.05)


def test_heads_that_do_not_divide_the_width_are_named():
    with pytest.raises(ValueError, match=r"perceiver\.heads=5 does not divide the width 12: choose a divisor of 12"):
        PerceiverResampler(12, heads=5)
