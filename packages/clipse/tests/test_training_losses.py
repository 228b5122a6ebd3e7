"""SANW against its formulas, with weights that act; statistics by hand; what a configuration may say."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from clip_common.losses import Boosted, Decoupled, InfoNCE
from clipse.config import LossConfig
from clipse.training.losses import RetrievalLoss, SANWBandpass, SANWDebias, build_loss, build_weighting
from clipse.training.statistics import compute_statistics

WEIGHTINGS = [
    SANWDebias(delta=0.1, lam=6.0),
    SANWDebias(delta=0.1, lam=6.0, kernel="hinge", alpha=0.7),
    SANWDebias(delta=0.1, lam=6.0, mix=1.0),
    SANWBandpass(m1=-0.1, m2=0.4, gamma=0.1),
    SANWBandpass(m1=-0.1, m2=0.4, gamma=0.1, alpha=0.5, mix=0.2),
]


def batch(rows: int = 12, width: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    image = torch.randn(rows, width, generator=random, dtype=dtype)
    text = image + torch.randn(rows, width, generator=random, dtype=dtype)
    return image.requires_grad_(), text.requires_grad_()


def formula(made, similarity: Tensor) -> Tensor:
    """The weights as the documentation writes them."""
    if isinstance(made, SANWBandpass):
        full = torch.sigmoid((similarity - made.m1) / made.gamma) * torch.sigmoid((made.m2 - similarity) / made.gamma)
        full = full.clamp_min(1e-3)
    elif made.kernel == "hinge":
        full = torch.exp(-made.lam * (similarity - made.delta).clamp_min(0))
    else:
        full = torch.sigmoid(made.lam * (made.delta - similarity))
    return (1 - made.alpha) + made.alpha * full


def dense(made, image: Tensor, text: Tensor, scale: float, *, normalise: str, form: str, ids: Tensor) -> Tensor:
    """The loss with the whole matrix in sight."""
    v, t = normalize(image, dim=1), normalize(text, dim=1)
    z = scale * v @ t.T
    weight = formula(made, made.mix * (t @ t.T) + (1 - made.mix) * (v @ v.T)).detach()
    negative = ids[:, None] != ids[None]
    total = 0.0
    for logits, weights, others in ((z, weight, negative), (z.T, weight.T, negative.T)):
        mean = (weights * others).sum(1, keepdim=True) / others.sum(1, keepdim=True) if normalise == "mean1" else 1.0
        weighted = (weights / mean * others * logits.exp()).sum(1)
        positive, plain = logits.diag().exp(), (others * logits.exp()).sum(1)
        denominator = {
            "infonce": positive + weighted,
            "decoupled": weighted,
            "boosted": positive + plain + 0.5 * weighted,
        }
        total = total + (denominator[form].log() - logits.diag()).mean() / 2
    return total


@pytest.mark.parametrize("made", WEIGHTINGS, ids=str)
@pytest.mark.parametrize("normalise", ["mean1", "none"])
@pytest.mark.parametrize("form", ["infonce", "decoupled", "boosted"])
def test_every_weighting_form_and_normalisation_equals_the_whole_matrix_with_gradients(made, normalise, form):
    image, text = batch()
    ids = torch.arange(12) // 2
    forms = {"infonce": InfoNCE(), "decoupled": Decoupled(), "boosted": Boosted(beta=0.5)}
    weights = formula(made, made.mix * torch.ones(1))
    assert torch.isfinite(weights).all()
    ours = RetrievalLoss(made, form=forms[form], normalise=normalise)(image, text, scale=5.0, image_ids=ids).loss
    gradients = torch.autograd.grad(ours, (image, text))
    theirs = dense(made, image, text, 5.0, normalise=normalise, form=form, ids=ids)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    for one, other in zip(gradients, torch.autograd.grad(theirs, (image, text)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("made", WEIGHTINGS, ids=str)
def test_the_weights_of_these_tests_act(made):
    image, text = batch()
    plain = RetrievalLoss()(image, text, scale=5.0).loss
    weighted = RetrievalLoss(made)(image, text, scale=5.0).loss
    assert abs(plain - weighted) > 1e-3


@pytest.mark.parametrize("made", [SANWDebias(alpha=0.0), SANWBandpass(alpha=0.0)], ids=str)
def test_strength_zero_is_clip_with_gradients(made):
    image, text = batch(dtype=torch.float32)
    v, t = normalize(image, dim=1), normalize(text, dim=1)
    z, labels = 14.0 * v @ t.T, torch.arange(12)
    theirs = (cross_entropy(z, labels) + cross_entropy(z.T, labels)) / 2
    ours = RetrievalLoss(made)(image, text, scale=14.0).loss
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    for one, other in zip(
        torch.autograd.grad(ours, (image, text)), torch.autograd.grad(theirs, (image, text)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("normalise", ["mean1", "none"])
@pytest.mark.parametrize(
    "made",
    [
        SANWDebias(delta=0.2, lam=32.0),
        SANWDebias(delta=0.2, lam=200.0),
        SANWDebias(delta=0.2, lam=32.0, alpha=0.999),
        SANWDebias(delta=0.2, lam=200.0, kernel="hinge"),
        SANWDebias(delta=0.2, lam=200.0, kernel="hinge", alpha=1e-3),
        SANWBandpass(m1=-0.2, m2=0.2, gamma=0.01),
        SANWBandpass(m1=-0.2, m2=0.2, gamma=0.01, alpha=0.5),
    ],
    ids=str,
)
def test_weights_near_zero_are_as_good_in_float32_as_in_float64(made, normalise):
    torch.manual_seed(0)
    image = torch.ones(12, 6, dtype=torch.float64) + 0.05 * torch.randn(12, 6, dtype=torch.float64)
    text = image + 0.05 * torch.randn(12, 6, dtype=torch.float64)
    v, t = normalize(image, dim=1), normalize(text, dim=1)
    similarity = made.mix * (t @ t.T) + (1 - made.mix) * (v @ v.T)
    assert similarity.min() > 0.98
    loss = RetrievalLoss(made, normalise=normalise)
    exact, found = (loss(image.to(dtype), text.to(dtype), scale=5.0) for dtype in (torch.float64, torch.float32))
    ids = torch.arange(12)
    theirs = dense(made, image, text, 5.0, normalise=normalise, form="infonce", ids=ids)
    torch.testing.assert_close(exact.loss, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss.double(), theirs, atol=1e-5, rtol=1e-5)

    weight = formula(made, similarity).masked_fill(torch.eye(12, dtype=torch.bool), 0.0)
    weight = weight * 11 / weight.sum(dim=1, keepdim=True) if normalise == "mean1" else weight
    ess = (weight.sum() ** 2 / (weight**2).sum() / 132).item()
    assert found.statistics["ess"].item() == pytest.approx(ess, rel=1e-3)
    assert found.statistics["w_mean"].item() == pytest.approx(weight.sum().item() / 132, rel=1e-3, abs=1e-37)
    assert all(torch.isfinite(value) for value in found.statistics.values())


def test_references_are_what_pairs_are_compared_by_and_get_no_gradient():
    image, text = batch()
    references = tuple(side.detach().roll(1, dims=0).requires_grad_() for side in (image, text))
    made = SANWDebias(delta=0.1, lam=6.0)
    online = RetrievalLoss(made)(image, text, scale=5.0).loss
    frozen = RetrievalLoss(made)(image, text, scale=5.0, references=references).loss
    assert abs(online - frozen) > 1e-4
    assert torch.autograd.grad(frozen, references, allow_unused=True) == (None, None)


def test_weights_by_hand():
    similarity = torch.tensor([0.6, 0.85])
    debias = SANWDebias(delta=0.6, lam=4.0)
    assert debias.log_full(similarity).exp().tolist() == pytest.approx([0.5, 1 / (1 + math.e)])
    hinge = SANWDebias(delta=0.6, lam=4.0, kernel="hinge")
    assert hinge.log_full(similarity).exp().tolist() == pytest.approx([1.0, 1 / math.e])
    bandpass = SANWBandpass(m1=0.3, m2=0.6, gamma=0.05)
    edge = 1 / (1 + math.exp(-6))  # the far edge is six widths away
    assert bandpass.log_full(torch.tensor([0.3, 0.6, 0.45])).exp().tolist() == pytest.approx(
        [0.5 * edge, 0.5 * edge, (1 / (1 + math.exp(-3))) ** 2]
    )
    assert bandpass.log_full(torch.tensor([5.0])).exp().item() == pytest.approx(1e-3)


def test_the_similarity_mixes_texts_and_images_by_hand():
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    assert SANWDebias(mix=0.25).similarity(image, text, image, text)[0, 1].item() == pytest.approx(0.25 * 0.6)


class Fixed:
    """A weighting that reads its weights from a table, and singles out those above one."""

    table = torch.tensor([[9.0, 1.0, 3.0], [2.0, 9.0, 2.0], [0.2, 1.8, 9.0]])

    def log_weight(self, *references: Tensor) -> Tensor:
        return self.table.log()

    def similarity(self, *references: Tensor) -> Tensor:
        return self.table

    def in_band(self, similarity_IJ: Tensor) -> Tensor:
        return similarity_IJ > 1.9


def test_the_statistics_by_hand():
    eye = torch.eye(3)
    image = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.6, 0.8]])
    statistics = compute_statistics(Fixed(), image, eye, references=(image, eye), scale=10.0)
    # normalised to mean 1 a row: (0.5, 1.5), (1, 1), (0.2, 1.8); logits of the negatives: 0, 0, 0, 0, 0, 6
    found = {name: round(value.item(), 4) for name, value in statistics.items()}
    assert found["w_mean"] == 1.0
    assert found["w_p50"] == 1.0
    assert found["w_p05"] == pytest.approx(0.275)  # a quarter of the way from 0.2 to 0.5
    assert found["w_p95"] == pytest.approx(1.725)
    assert found["low_pct"] == pytest.approx(100 / 6, abs=1e-3)
    assert found["high_pct"] == pytest.approx(100 / 6, abs=1e-3)
    assert found["band_coverage_pct"] == 50.0  # 3, 2 and 2
    assert found["ess"] == pytest.approx(36 / 7.78 / 6, abs=1e-4)
    weights, logits = torch.tensor([0.5, 1.5, 1, 1, 0.2, 1.8]), torch.tensor([0.0, 0, 0, 0, 0, 6])
    assert found["corr_wz"] == pytest.approx(torch.corrcoef(torch.stack([weights, logits]))[0, 1].item(), abs=1e-3)


def test_pairs_of_one_image_are_no_negatives_in_the_statistics():
    eye = torch.eye(3)
    statistics = compute_statistics(
        Fixed(), eye, eye, references=(eye, eye), scale=1.0, exclude=torch.tensor([7, 7, 8]), normalise="none"
    )
    # left are 3, 2, 0.2 and 1.8
    assert statistics["w_mean"].item() == pytest.approx(1.75)
    of_one = compute_statistics(Fixed(), eye, eye, references=(eye, eye), scale=1.0, exclude=torch.zeros(3))
    assert of_one["w_mean"].isnan()
    assert of_one["w_p50"].isnan()
    assert compute_statistics(Fixed(), eye[:1], eye[:1], references=(eye[:1], eye[:1]), scale=1.0) == {}


@given(st.integers(1, 9), st.integers(0, 50), st.sampled_from(WEIGHTINGS))
def test_the_order_of_the_pairs_does_not_matter_and_small_batches_are_finite(rows, seed, made):
    image, text = batch(rows, seed=seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    loss = RetrievalLoss(made)
    one, other = loss(image, text, scale=100.0).loss, loss(image[order], text[order], scale=100.0).loss
    assert torch.isfinite(one)
    torch.testing.assert_close(one, other)


def test_a_batch_of_one_image_has_loss_zero():
    image, text = batch(4)
    output = RetrievalLoss(SANWDebias())(image, text, scale=10.0, image_ids=torch.zeros(4, dtype=torch.long))
    assert output.loss.item() == pytest.approx(0.0, abs=1e-6)


DOCUMENTED = {
    "sanw_debias": {
        "default": {"alpha": 1.0, "delta": 0.6, "lam": 4.0},
        "conservative": {"alpha": 0.1, "delta": 0.2, "lam": 0.5},
        "aggressive": {"alpha": 0.3, "delta": 0.5, "lam": 2.0},
    },
    "sanw_bandpass": {
        "default": {"alpha": 1.0, "m1": 0.3, "m2": 0.8, "gamma": 0.05},
        "conservative": {"alpha": 0.1, "m1": 0.1, "m2": 0.9, "gamma": 0.5},
        "aggressive": {"alpha": 0.2, "m1": 0.3, "m2": 0.8, "gamma": 1.0},
    },
}
NAMES = tuple(DOCUMENTED)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["default", "conservative", "aggressive"])
def test_a_preset_is_what_the_table_says_and_a_field_overrides_it(name, preset):
    made = build_loss(LossConfig(name=name, preset=preset)).weighting
    expected = DOCUMENTED[name][preset]
    assert {key: getattr(made, key) for key in expected} == expected
    assert build_loss(LossConfig(name=name, preset=preset, parameters={"alpha": 0.42})).weighting.alpha == 0.42


def test_the_documents_presets_are_nearly_clip_and_the_default_acts():
    similarity = torch.linspace(0, 1, 1001)

    def spread(name: str, preset: str) -> float:
        weights = formula(build_weighting(name, preset=preset), similarity)
        return (weights.max() / weights.min()).item()

    assert max(spread(name, preset) for name in NAMES for preset in ("conservative", "aggressive")) < 1.2
    assert min(spread(name, "default") for name in NAMES) > 5


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "sanw"}, "sanw_debias"),
        ({"name": "clip", "delta": 0.1}, "loss.delta"),
        ({"name": "siglip", "form": "decoupled"}, "loss.form"),
        ({"name": "sanw_debias", "m1": 0.1}, "m1"),
        ({"name": "sanw_debias", "alpha": 1.5}, "loss.alpha"),
        ({"name": "sanw_debias", "kernel": "box"}, "loss.kernel"),
        ({"name": "sanw_debias", "lam": 0.0}, "loss.lambda"),
        ({"name": "sanw_bandpass", "m1": 0.9}, "loss.m1"),
        ({"name": "sanw_bandpass", "gamma": 0.0}, "loss.gamma"),
        ({"name": "sanw_bandpass", "mix": -1.0}, "loss.mix"),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused_in_one_line(fields, said):
    loss = LossConfig(
        **{key: value for key, value in fields.items() if key in ("name", "form")},
        parameters={key: value for key, value in fields.items() if key not in ("name", "form")},
    )
    with pytest.raises(ValueError) as error:
        build_loss(loss)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
