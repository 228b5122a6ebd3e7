"""Encoders: their tokens against the trunk run by hand, heads whatever masked tokens hold, frozen means frozen."""

import pytest
import torch
import transformers
from torch.nn.functional import normalize
from toy_encoders import SIDE, make_config, make_inputs

from clip_common.backbones import load_clip
from clip_common.backbones.trunk import TokenSequence
from edgeglass.config import AudioConfig, PerceiverConfig, VisionConfig
from edgeglass.models.building import build_encoders, build_model
from edgeglass.models.encoders import (
    AudioEncoderOutput,
    EncoderOutput,
    ProjectionHead,
    TextEncoderOutput,
    VisionEncoderOutput,
)
from edgeglass.training.losses import build_loss

POOLINGS = ["mean", "attention", "perceiver"]


def image_encoder(folders, *overrides: str):
    return build_encoders(make_config(folders, *(f"encoders.vision.{one}" for one in overrides)))["image"].eval()


@pytest.mark.parametrize(("kind", "loader"), [("vision", "CLIPVisionModel"), ("dinov2", "Dinov2Model")])
@pytest.mark.parametrize("layer", [1, 2, 3, -1, -2])
@pytest.mark.parametrize("select", ["patch", "cls_patch"])
def test_selected_tokens_are_those_of_the_model_run_by_hand(encoder_folders, kind, loader, layer, select):
    encoder = image_encoder(
        encoder_folders,
        f"name={encoder_folders / kind}",
        f"select_layer={layer}",
        f"select_feature={select}",
        "pooling=attention",
    )
    model = getattr(transformers, loader).from_pretrained(encoder_folders / kind, dtype=torch.float32).eval()
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        theirs = model(pixel_values=images, output_hidden_states=True)
        tokens, mask = encoder.features(images)
        expected = theirs.hidden_states[layer if layer > 0 else 4 + layer]  # [0] is before the first block
        if select == "patch":
            expected = (theirs.last_hidden_state if layer in (3, -1) else expected)[:, 1:]
        torch.testing.assert_close(tokens, expected)
        assert mask.shape == tokens.shape[:2]
        assert mask.all()


def test_mean_pools_the_tokens_and_own_takes_what_the_model_pools(encoder_folders):
    images = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        tokens, _ = image_encoder(encoder_folders, "pooling=attention").features(images)
        mean = image_encoder(encoder_folders, "pooling=mean")
        features, mask = mean.features(images)
        torch.testing.assert_close(features, tokens.mean(dim=1, keepdim=True))
        assert mask.tolist() == [[True], [True]]
        torch.testing.assert_close(mean(images).pooled, mean.head.projector(tokens.mean(dim=1)))
        theirs = transformers.CLIPVisionModel.from_pretrained(encoder_folders / "vision", dtype=torch.float32).eval()
        own, _ = image_encoder(encoder_folders, "pooling=own").features(images)
        torch.testing.assert_close(own[:, 0], theirs(pixel_values=images).pooler_output)


def test_the_pooled_output_of_open_clip_has_the_width_of_its_projection(encoder_folders):
    name = f"local-dir:{encoder_folders / 'clip'}"
    images = torch.randn(2, 3, SIDE, SIDE)
    bundle = load_clip(name)
    with torch.no_grad():
        own = image_encoder(encoder_folders, f"name={name}", "pooling=own")
        torch.testing.assert_close(own.features(images)[0][:, 0], bundle.image_tower.pooled(images))
        assert own(images).pooled.shape == (2, 16)
        mean = image_encoder(encoder_folders, f"name={name}", "pooling=mean")
        patches = bundle.image_tower(images).patches
        torch.testing.assert_close(mean.features(images)[0][:, 0], patches.mean(dim=1))
    assert (own.trunk.width, mean.trunk.width) == (10, 16)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("filler", [5.0, float("nan"), float("inf")])
@pytest.mark.parametrize("padding", [0, 3])
def test_masked_tokens_change_neither_a_head_nor_its_gradients(pooling, filler, padding):
    torch.manual_seed(0)
    config = AudioConfig(perceiver=PerceiverConfig(latents=2, layers=2, heads=2, ff_mult=1))
    head = ProjectionHead(width=6, embed_dim=8, config=config, pooling=pooling, perceiver=config.perceiver)
    mask = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4])
    random, weights = torch.randn(3, 4, 6), torch.randn(3, 8)

    def run(filler: float, padding: int) -> list[torch.Tensor]:
        tokens = torch.cat([random.masked_fill(~mask[..., None], filler), torch.full((3, padding, 6), filler)], dim=1)
        tokens.requires_grad_()
        wide = torch.cat([mask, torch.zeros(3, padding, dtype=torch.bool)], dim=1)
        pooled, sequence, kept = head(tokens, wide)
        total = (pooled * weights).sum() + sequence[kept].square().sum()
        gradients = list(torch.autograd.grad(total, [tokens, *head.parameters()]))
        assert (gradients[0][~wide] == 0).all()
        return [pooled, total, gradients[0][:, :4], *gradients[1:]]

    for one, other in zip(run(filler, padding), run(0.0, 0), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_head_that_pools_first_projects_the_mean_and_keeps_projected_tokens():
    head = ProjectionHead(width=6, embed_dim=8, config=VisionConfig(), pooling="mean", perceiver=None)
    tokens, mask = torch.randn(2, 3, 6), torch.tensor([[True, True, False], [True, True, True]])
    pooled, sequence, kept = head(tokens, mask)
    torch.testing.assert_close(pooled[0], head.projector(tokens[0, :2].mean(dim=0)))
    torch.testing.assert_close(sequence[1], head.projector(tokens[1]))
    assert kept is mask


def test_prefixes_are_of_unit_length_and_those_of_pooled():
    output = EncoderOutput(torch.randn(3, 8).bfloat16(), torch.zeros(3, 1, 8), torch.ones(3, 1).bool(), (8, 4, 2))
    assert list(output.mrl_embeddings) == [8, 4, 2]
    for dim, rows in output.mrl_embeddings.items():
        torch.testing.assert_close(rows, normalize(output.pooled[:, :dim].float(), dim=1))
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_outputs_have_the_shapes_they_state_and_cached_features_give_the_same(encoder_folders, pooling):
    overrides = [f"encoders.vision.pooling={pooling}", f"encoders.audio.pooling={pooling}"]
    model = build_model(make_config(encoder_folders, *overrides)).eval()
    given = make_inputs(model)
    kinds = {"image": VisionEncoderOutput, "text": TextEncoderOutput, "audio": AudioEncoderOutput}
    for name, inputs in zip(model.modalities, given.values(), strict=True):
        encoder = model.encoder_of(name)
        output = encoder(inputs)
        assert type(output) is kinds[name]
        tokens = 1 if encoder.pools_first else 3 if pooling == "perceiver" else output.mask.shape[1]
        assert output.pooled.shape == (6, 16)
        assert output.sequence.shape == (6, tokens, 16)
        assert output.mask.shape == (6, tokens)
        assert output.dims == (16, 8, 4)
        kept = TokenSequence(*(part.clone() for part in encoder.features(inputs)))
        assert torch.equal(encoder(kept).pooled, output.pooled)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_sound_does_not_depend_on_the_longer_ones_of_its_batch(encoder_folders, pooling):
    encoder = build_encoders(make_config(encoder_folders, f"encoders.audio.pooling={pooling}"))["audio"].eval()
    feed = encoder.encoder.feed
    waves = [torch.randn(samples, generator=torch.Generator().manual_seed(samples)) for samples in (3000, 40_000, 9000)]
    together = encoder(feed.batch([feed.from_samples(wave) for wave in waves])).pooled
    for number, wave in enumerate(waves):
        alone = encoder(feed.batch([feed.from_samples(wave)])).pooled
        torch.testing.assert_close(together[number : number + 1], alone, atol=1e-5, rtol=1e-5)


def test_a_frozen_text_model_is_the_same_to_the_last_bit_after_training(encoder_folders):
    from sentence_transformers import SentenceTransformer

    config = make_config(encoder_folders)
    model = build_model(config, loss=build_loss(config))
    given, texts = make_inputs(model), ["a dog", "rain on a roof", ""]
    encoder = model.encoder_of("text")

    def embed() -> torch.Tensor:
        with torch.no_grad():
            return encoder.features(encoder.encoder.feed.batch(texts)).tokens.clone()

    stock = SentenceTransformer(str(encoder_folders / "text"), device="cpu")
    before, head, stock_before = embed(), encoder.head.projector[-1].weight.clone(), stock.encode(texts)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        model(**given).loss.backward()
        optimizer.step()
    assert torch.equal(embed(), before)
    assert (encoder.trunk.model.encode(texts) == stock_before).all()
    torch.testing.assert_close(before[:, 0], torch.from_numpy(stock_before))
    assert not torch.equal(encoder.head.projector[-1].weight, head)


def test_frozen_trunks_get_no_gradient_and_stay_in_eval_mode(encoder_folders):
    config = make_config(encoder_folders, "encoders.audio.freeze=false")
    model = build_model(config, loss=build_loss(config)).train()
    model(**make_inputs(model)).loss.backward()
    for name in ("image", "text"):
        trunk = model.encoder_of(name).trunk
        assert not any(part.training for part in trunk.modules())
        assert all(p.grad is None and not p.requires_grad for p in trunk.parameters())
        assert all(p.grad is not None for p in model.encoder_of(name).head.parameters())
    audio = model.encoder_of("audio").trunk
    assert audio.model.training
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in audio.parameters())
