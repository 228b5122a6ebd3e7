"""The masked mean and attention pooling: by hand, and whatever masked tokens hold."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeglass.models.pooling import AttentionPooling, masked_mean

FILLERS = [7.5, float("nan"), float("inf"), -float("inf")]
MASK = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4])


def pool(kind: str):
    torch.manual_seed(0)
    return masked_mean if kind == "mean" else AttentionPooling(8)


def tokens(filler: float = 0.0, *, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (3, 4 + padding, 8) with `filler` in masked places, and their mask."""
    random = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    tokens_BLD = torch.cat([random.masked_fill(~MASK[..., None], filler), torch.full((3, padding, 8), filler)], dim=1)
    return tokens_BLD.requires_grad_(), torch.cat([MASK, torch.zeros(3, padding, dtype=torch.bool)], dim=1)


def run(pooling, tokens_BLD: torch.Tensor, mask_BL: torch.Tensor) -> list[torch.Tensor]:
    """The pooled tokens, and the gradients of tokens and parameters."""
    pooled_BD = pooling(tokens_BLD, mask_BL)
    parameters = list(pooling.parameters()) if isinstance(pooling, AttentionPooling) else []
    weights = torch.randn(pooled_BD.shape, generator=torch.Generator().manual_seed(2))
    return [pooled_BD, *torch.autograd.grad((pooled_BD * weights).sum(), [tokens_BLD, *parameters])]


@pytest.mark.parametrize("kind", ["mean", "attention"])
@pytest.mark.parametrize("filler", FILLERS)
@pytest.mark.parametrize("padding", [0, 3])
def test_masked_tokens_change_nothing_and_get_no_gradient(kind, filler, padding):
    pooling = pool(kind)
    expected = run(pooling, *tokens())
    found = run(pooling, *tokens(filler, padding=padding))
    mask_BL = tokens(padding=padding)[1]
    assert (found[1][~mask_BL] == 0).all()
    found[1] = found[1][:, :4]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["mean", "attention"])
@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_row_without_tokens_gives_zeros_and_finite_gradients(kind, length):
    tokens_BLD = torch.randn(2, length, 8, requires_grad=True)
    results = run(pool(kind), tokens_BLD, torch.zeros(2, length, dtype=torch.bool))
    assert (results[0] == 0).all()
    assert all(torch.isfinite(one).all() for one in results)


def test_the_mean_of_two_tokens():
    tokens_BLD = torch.tensor([[[1.0, 4.0], [3.0, 0.0], [100.0, 100.0]]])
    assert masked_mean(tokens_BLD, torch.tensor([[True, True, False]])).tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_of_many_narrow_numbers_is_exact(dtype):
    tokens_BLD = torch.full((1, 1501, 2), 96.0, dtype=dtype)  # their sum exceeds float16; 1,501 is no bfloat16
    mean_BD = masked_mean(tokens_BLD, torch.ones(1, 1501, dtype=torch.bool))
    assert mean_BD.dtype == dtype
    assert mean_BD.tolist() == [[96.0, 96.0]]


def test_attention_with_a_known_query_weighs_tokens_by_their_softmax():
    pooling = AttentionPooling(2)
    with torch.no_grad():
        pooling.query.copy_(torch.tensor([math.sqrt(2) * math.log(3) / 2, 0.0]))
        pooling.key.weight.copy_(torch.eye(2))
        pooling.value.weight.copy_(torch.eye(2))
        pooling.value.bias.zero_()
    # normalised: (1, -1) and (-1, 1), so logits are ln 3 / 2 and -ln 3 / 2: weights 3/4 and 1/4
    pooled_BD = pooling(torch.tensor([[[5.0, 1.0], [0.0, 6.0], [9.0, 9.0]]]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(pooled_BD, torch.tensor([[0.5, -0.5]]), atol=1e-5, rtol=0)


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 99))
def test_the_order_of_tokens_and_of_samples_does_not_matter(rows, length, seed):
    random = torch.Generator().manual_seed(seed)
    tokens_BLD = torch.randn(rows, length, 8, generator=random)
    mask_BL = torch.rand(rows, length, generator=random) < 0.7
    order, turn = torch.randperm(length, generator=random), torch.randperm(rows, generator=random)
    for kind in ("mean", "attention"):
        pooling = pool(kind)
        whole_BD = pooling(tokens_BLD, mask_BL)
        torch.testing.assert_close(pooling(tokens_BLD[:, order], mask_BL[:, order]), whole_BD, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(pooling(tokens_BLD[turn], mask_BL[turn]), whole_BD[turn], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_autocast_moves_nothing_but_rounding(kind):
    pooling, (tokens_BLD, mask_BL) = pool(kind), tokens(float("nan"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow_BD = pooling(tokens_BLD, mask_BL)
    torch.testing.assert_close(narrow_BD.float(), pooling(tokens_BLD, mask_BL), atol=0.03, rtol=0.03)
