"""The model: any subset of modalities, of a batch or of single samples; where gradients go; embeddings out."""

import itertools

import pytest
import torch
from torch.nn.functional import normalize
from toy_encoders import make_config, make_inputs

from edgeglass.config import MODALITIES
from edgeglass.models.alignment import MultimodalAlignmentModel
from edgeglass.models.building import build_model
from edgeglass.training.losses import AlignmentLoss, TriModalAlignmentLoss, build_loss

ARGUMENTS = {"image": "images", "text": "texts", "audio": "audio"}
CAPTIONS = torch.tensor([0, 1, 2, 3, 0, 5])
SUBSETS = [names for size in (1, 2, 3) for names in itertools.combinations(MODALITIES, size)]


@pytest.fixture(scope="module")
def built(encoder_folders) -> MultimodalAlignmentModel:
    config = make_config(encoder_folders, "fusion.kind=gated")
    return build_model(config, loss=build_loss(config))


@pytest.fixture
def model(built):
    built.zero_grad(set_to_none=True)
    return built.train()


@pytest.fixture(scope="module")
def given(built):
    return make_inputs(built)


def gradient(module: torch.nn.Module) -> float:
    """The largest gradient of a module's parameters; 0 without any."""
    found = [parameter.grad.abs().max().item() for parameter in module.parameters() if parameter.grad is not None]
    return max(found, default=0.0)


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("how", ["left out", "absent in every sample"])
def test_any_subset_of_modalities_trains_and_gradients_reach_its_encoders_alone(model, given, names, how):
    inputs = {ARGUMENTS[name]: given[ARGUMENTS[name]] for name in names}
    present = None
    if how != "left out":
        inputs = given
        present = {name: torch.full((6,), name in names) for name in MODALITIES}
    output = model(**inputs, present=present, captions=CAPTIONS)
    if how == "left out" and len(names) == 1:
        assert output.loss is None
        return
    output.loss.backward()
    assert torch.isfinite(output.loss)
    pairs = [pair for pair in ("image-text", "audio-text", "image-audio") if set(pair.split("-")) <= set(names)]
    fused = ["image+audio-text"] if "text" in names and len(names) > 1 else []
    assert set(output.losses) == {*pairs, *fused}
    for name in MODALITIES:
        assert (gradient(model.encoder_of(name).head) > 0) == (name in names and len(names) > 1), name
    assert (gradient(model.fusion) > 0) == bool(fused)
    for name, scale in model.loss.scales.items():
        assert scale.logit_scale.grad is not None
        assert (scale.logit_scale.grad != 0) == (name in output.losses)


def test_a_batch_without_any_pair_has_loss_0_and_gradients_of_zero(model, given):
    here = torch.arange(6) % 3  # every sample has one modality
    present = {name: here == number for number, name in enumerate(MODALITIES)}
    without_fusion = MultimodalAlignmentModel(dict(model.encoders.items()), loss=TriModalAlignmentLoss(dims=(8, 4)))
    output = without_fusion(**given, present=present, captions=CAPTIONS)
    assert output.loss.item() == 0
    output.loss.backward()
    gradients = [p.grad for p in without_fusion.parameters() if p.requires_grad]
    assert all(grad is not None and (grad == 0).all() for grad in gradients)


def test_the_loss_of_samples_that_lack_modalities_is_that_of_the_rows_that_have_both(model, given):
    has_audio, has_text = torch.tensor([1, 1, 0, 1, 0, 1]).bool(), torch.tensor([1, 1, 1, 0, 1, 1]).bool()
    present = {"audio": has_audio, "text": has_text}
    output = model.eval()(**given, present=present, captions=CAPTIONS)
    rows = output.embeddings
    both = has_audio & has_text
    for (first, second), kept in {
        ("audio", "text"): both,
        ("image", "text"): has_text,
        ("image", "audio"): has_audio,
        ("image+audio", "text"): has_text,
    }.items():
        alone = AlignmentLoss(dims=(8, 4), pairs={(first, second): 1.0})
        theirs = alone({first: rows[first][kept], second: rows[second][kept]}, captions=CAPTIONS[kept])
        torch.testing.assert_close(output.losses[f"{first}-{second}"], theirs.loss)


@pytest.mark.parametrize("filler", [float("nan"), 1e4])
def test_what_absent_rows_hold_is_never_seen(model, given, filler):
    here = torch.tensor([True, True, False, True, False, True])
    images = given["images"].masked_fill(~here[:, None, None, None], filler)
    results = []
    for pixels in (given["images"], images):
        model.zero_grad()
        output = model(**{**given, "images": pixels}, present={"image": here}, captions=CAPTIONS)
        output.loss.backward()
        results.append([output.loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_the_loss_of_evaluation_is_that_of_training(model, given):
    with torch.no_grad():
        trained = model(**given, captions=CAPTIONS).loss
        torch.testing.assert_close(model.eval()(**given, captions=CAPTIONS).loss, trained)


def test_logits_are_scaled_cosines(model, given):
    output = model(**given, captions=CAPTIONS)
    assert set(output.logits) == {"image-text", "audio-text", "image-audio", "image+audio-text"}
    image, text = normalize(output.embeddings["image"], dim=1), normalize(output.embeddings["text"], dim=1)
    torch.testing.assert_close(output.logits["image-text"], image @ text.T / 0.07)
    assert output.scales["image-text"].item() == pytest.approx(1 / 0.07)
    pair = model(images=given["images"], texts=given["texts"])
    assert set(pair.logits) == {"image-text", "image+audio-text"}


def test_embeddings_are_of_unit_length_and_centred_if_asked(model):
    pooled = torch.randn(5, 16).bfloat16()
    unit = normalize(pooled.float(), dim=1)
    torch.testing.assert_close(model.embed("text", pooled, centre=False), unit)
    torch.testing.assert_close(model.embed("text", pooled, centre=True), unit)  # no mean is set
    before = {name: mean.clone() for name, mean in model.means.items()}
    mean = unit.mean(dim=0)
    model.set_means({"text": mean})
    torch.testing.assert_close(model.embed("text", pooled, centre=True), normalize(unit - mean, dim=1))
    torch.testing.assert_close(model.embed("image", pooled, centre=True), unit)
    assert "means.text" in model.state_dict()
    assert not model.means["text"].requires_grad
    model.set_means(before)


def test_a_model_without_a_loss_embeds(encoder_folders):
    model = build_model(make_config(encoder_folders, "encoders.audio.name=null"))
    output = model(**make_inputs(model))
    assert (output.loss, output.losses, set(output.embeddings)) == (None, {}, {"image", "text"})
    assert (model.modalities, model.widths, model.device.type) == (("image", "text"), (16, 8, 4), "cpu")
    with pytest.raises(ValueError, match="no encoder of audio: it was aligned for image, text"):
        model(audio=torch.zeros(1))
    with pytest.raises(ValueError, match="nothing to embed: give images, texts or audio"):
        model()


def test_autocast_moves_the_loss_by_rounding_alone(model, given):
    exact = model(**given, captions=CAPTIONS).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**given, captions=CAPTIONS).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
