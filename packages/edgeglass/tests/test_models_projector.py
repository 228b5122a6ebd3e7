"""The projector: its formula, and features of any scale."""

import pytest
import torch
from torch.nn.functional import gelu, linear

from edgeglass.models.projector import build_projector


def standardise(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(dim=-1, keepdim=True)) / (x.var(dim=-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def test_a_linear_projector_is_one_matrix_over_standardised_features():
    projector, x = build_projector("linear", width=6, embed_dim=4), torch.randn(3, 6)
    weight, bias = projector.parameters()
    torch.testing.assert_close(projector(x), standardise(x) @ weight.T + bias)


def test_an_mlp_is_two_with_a_gelu_between_them():
    projector, x = build_projector("mlp", width=6, embed_dim=4, hidden=5), torch.randn(3, 6)
    first, first_bias, last, last_bias = projector.parameters()
    assert first.shape == (5, 6)
    hidden = gelu(linear(standardise(x), first, first_bias))
    torch.testing.assert_close(projector(x), linear(hidden, last, last_bias))


def test_the_hidden_layer_is_twice_as_wide_as_the_embeddings_unless_said():
    first, *_ = build_projector("mlp", width=6, embed_dim=4).parameters()
    assert first.shape == (8, 6)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_scale_of_the_features_does_not_matter(kind):
    projector, x = build_projector(kind, width=64, embed_dim=4), torch.randn(3, 64)
    torch.testing.assert_close(projector(100 * x), projector(x), atol=1e-4, rtol=1e-4)
    assert torch.isfinite(projector(torch.zeros(2, 64))).all()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_dropout_acts_in_training_alone(kind):
    projector, x = build_projector(kind, width=6, embed_dim=4, dropout=0.5), torch.randn(20, 6)
    assert not torch.equal(projector(x), projector(x))
    projector.eval()
    assert torch.equal(projector(x), projector(x))
