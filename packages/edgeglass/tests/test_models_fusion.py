"""Fusion: what stands in for an absent modality, and that nothing of an absent row is seen."""

import pytest
import torch
from torch.nn.functional import normalize

from edgeglass.models.fusion import MultimodalFusion

KINDS = ["concat", "gated", "cross_attention"]
HAS_AUDIO = torch.tensor([True, False, True, False])


def fusion(kind: str, names: tuple[str, ...] = ("image", "audio")) -> MultimodalFusion:
    torch.manual_seed(0)
    return MultimodalFusion(kind, width=8, modalities=names, heads=2)


def embeddings(filler: float = 0.0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    image, audio = torch.randn(2, 4, 8, generator=random)
    return {"image": image.requires_grad_(), "audio": audio.masked_fill(~HAS_AUDIO[:, None], filler).requires_grad_()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("filler", [3.0, float("nan"), float("inf")])
def test_absent_rows_change_nothing_and_get_no_gradient(kind, filler):
    model, weights = fusion(kind), torch.randn(4, 8)

    def run(filler: float) -> list[torch.Tensor]:
        given = embeddings(filler)
        fused = model(given, {"audio": HAS_AUDIO})
        inputs = [given["image"], given["audio"], *model.parameters()]
        return [fused, *torch.autograd.grad((fused * weights).sum(), inputs)]

    found = run(filler)
    for one, other in zip(found, run(0.0), strict=True):
        torch.testing.assert_close(one, other)
    assert (found[2][~HAS_AUDIO] == 0).all()
    assert (found[2][HAS_AUDIO].abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_null_embeddings_stand_in_for_absent_rows_and_learn(kind):
    model, given = fusion(kind), embeddings()
    instead = torch.where(HAS_AUDIO[:, None], given["audio"], model.null_MD[1])
    torch.testing.assert_close(model(given, {"audio": HAS_AUDIO}), model({"image": given["image"], "audio": instead}))
    whole_batch = model({"image": given["image"]})
    torch.testing.assert_close(whole_batch, model(given, {"audio": torch.zeros(4, dtype=torch.bool)}))
    model(given, {"audio": HAS_AUDIO}).square().sum().backward()
    assert model.null_MD.grad[1].abs().max() > 0
    assert (model.null_MD.grad[0] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_gradient_even_if_nothing_is_absent(kind):
    model = fusion(kind)  # DDP waits for every one
    model(embeddings()).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_of_the_inputs_do_not_matter_and_their_roles_do(kind):
    model, given = fusion(kind), embeddings()
    torch.testing.assert_close(model({"image": 50 * given["image"], "audio": given["audio"] / 9}), model(given))
    assert not torch.allclose(model({"image": given["audio"], "audio": given["image"]}), model(given))


def test_gates_that_know_nothing_give_the_mean():
    model, given = fusion("gated", ("image", "audio", "text")), embeddings()
    torch.nn.init.zeros_(model.mix[2].weight)
    torch.nn.init.zeros_(model.mix[2].bias)
    text = torch.randn(4, 8)
    rows = [given["image"], given["audio"], text]
    expected = torch.stack([normalize(part, dim=1) for part in rows]).mean(dim=0)
    torch.testing.assert_close(model({**given, "text": text}), expected)


@pytest.mark.parametrize("kind", ["concat", "cross_attention"])
def test_what_is_learned_is_added_to_the_mean(kind):
    model, given = fusion(kind), embeddings()
    last = model.mix[2] if kind == "concat" else model.out
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    torch.testing.assert_close(model(given), (normalize(given["image"], dim=1) + normalize(given["audio"], dim=1)) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_moves_nothing_but_rounding(kind):
    model, given = fusion(kind), embeddings(float("nan"))
    narrow = {name: rows.bfloat16() for name, rows in given.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = model(narrow, {"audio": HAS_AUDIO})
    torch.testing.assert_close(fused.float(), model(given, {"audio": HAS_AUDIO}), atol=0.02, rtol=0.05)


def test_what_does_not_fit_is_said_in_one_line():
    with pytest.raises(ValueError, match=r"fusion\.heads=3 does not divide the width 8: choose a divisor of 8"):
        MultimodalFusion("cross_attention", width=8, modalities=("image", "audio"), heads=3)
    with pytest.raises(ValueError, match="give at least one of image, audio"):
        fusion("gated")({"text": torch.randn(4, 8)})
    assert fusion("gated").name == "image+audio"
