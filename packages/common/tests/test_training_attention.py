"""Attention under CPU autocast: float32 while a bf16 fit runs, torch's own dtype otherwise."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from clip_common.training.attention import float32_cpu_attention


def attention(*arguments: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return scaled_dot_product_attention(*arguments)


@pytest.mark.parametrize("masked", [False, True])
def test_inside_the_product_is_float32_and_outside_it_is_autocast_s(masked):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 5, 8)
    mask = [torch.full((5, 5), float("-inf")).triu(1).bfloat16()] if masked else []
    exact = scaled_dot_product_attention(query, key, value, *(one.float() for one in mask))
    assert attention(query, key, value, *mask).dtype == torch.bfloat16
    with float32_cpu_attention():
        inside = attention(query, key, value, *mask)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, exact)
    assert attention(query, key, value, *mask).dtype == torch.bfloat16


def test_gradients_come_back_in_the_dtype_of_the_inputs():
    query, key, value = (torch.randn(1, 1, 4, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    with float32_cpu_attention():
        attention(query, key, value).sum().backward()
    assert {one.grad.dtype for one in (query, key, value)} == {torch.bfloat16}


def test_doubles_stay_doubles_and_one_inside_another_works():
    query, key, value = torch.randn(3, 1, 1, 4, 8, dtype=torch.float64)
    with float32_cpu_attention():
        assert attention(query, key, value).dtype == torch.float64
        with float32_cpu_attention():
            assert attention(*torch.randn(3, 1, 1, 4, 8)).dtype == torch.float32
        assert attention(*torch.randn(3, 1, 1, 4, 8)).dtype == torch.float32
    assert attention(*torch.randn(3, 1, 1, 4, 8)).dtype == torch.bfloat16


def test_without_autocast_nothing_changes():
    query, key, value = torch.randn(3, 1, 1, 4, 8, dtype=torch.bfloat16)
    with float32_cpu_attention():
        assert scaled_dot_product_attention(query, key, value).dtype == torch.bfloat16
