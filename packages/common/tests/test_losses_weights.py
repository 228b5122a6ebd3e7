"""Weights of negatives: normalised by rows and by columns of one matrix, of any size."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize, softplus
from toy_losses import SCALE, TILES, batch, both_ways, logits, off_diagonal, same

from clip_common.losses import Guided, InfoNCE, Matryoshka, SigLIP, contrastive_loss


class Tabulated:
    """Weights by where a pair's references point: any function of them will do."""

    def log_weight(self, x_i: Tensor, y_i: Tensor, x_j: Tensor, y_j: Tensor) -> Tensor:
        return 2 * (x_i @ y_j.T) - (y_i @ x_j.T)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("normalise", ["none", "mean1"])
def test_weights_are_normalised_by_rows_and_by_columns_of_one_matrix(normalise, tile):
    x, y = batch()
    references = tuple(side.detach() for side in batch(width=3, seed=4))
    u, v = (normalize(side, dim=1) for side in references)
    weight = (2 * (u @ v.T) - (v @ u.T)).exp()
    assert weight.max() / weight.min() > 10

    def one_way(z: Tensor, weight: Tensor) -> Tensor:
        weight = weight * off_diagonal(z)
        if normalise == "mean1":
            weight = weight / (weight.sum(1, keepdim=True) / (len(z) - 1))
        return (z.diag().exp() + (weight * z.exp()).sum(1)).log() - z.diag()

    ours = contrastive_loss(
        x, y, scale=SCALE, weighting=Tabulated(), references=references, normalise=normalise, tile=tile
    )
    same(ours, both_ways(one_way, logits(x, y), weight), x, y)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("normalise", ["none", "mean1"])
def test_weighted_softplus_is_its_formula(normalise, tile):
    x, y = batch()
    u, v = (normalize(side.detach(), dim=1) for side in (x, y))
    weight = (2 * (u @ v.T) - (v @ u.T)).exp()

    def one_way(z: Tensor, weight: Tensor) -> Tensor:
        weight = weight * off_diagonal(z)
        if normalise == "mean1":
            weight = weight / (weight.sum(1, keepdim=True) / (len(z) - 1))
        return (weight * softplus(z - 3)).sum(1) - logsigmoid(z.diag() - 3)

    ours = SigLIP()(x, y, scale=SCALE, bias=-3.0, weighting=Tabulated(), normalise=normalise, tile=tile)
    same(ours, both_ways(one_way, logits(x, y), weight), x, y)


class Constant:
    """One weight for all, as large or as small as it may be."""

    def __init__(self, log_weight: float) -> None:
        self.value = log_weight

    def log_weight(self, x_i: Tensor, y_i: Tensor, x_j: Tensor, y_j: Tensor) -> Tensor:
        return torch.full((len(x_i), len(x_j)), self.value)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("log_weight", [100.0, -200.0])
@pytest.mark.parametrize("form", [InfoNCE(), SigLIP(), Guided(SigLIP()), Matryoshka(SigLIP(), dims=(4,))], ids=str)
def test_a_constant_weight_of_any_size_changes_nothing_under_mean1(form, log_weight, tile):
    x, y = batch(dtype=torch.float32)
    weighted = form(x, y, scale=SCALE, bias=-3.0, weighting=Constant(log_weight), tile=tile)
    same(weighted, form(x, y, scale=SCALE, bias=-3.0), x, y, tolerance=2e-5)
