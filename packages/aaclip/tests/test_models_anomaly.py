"""The adapted towers against short references, and what is trained and what is not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from aaclip.config import AdapterConfig, Config, HeadConfig
from aaclip.models import PlainCLIP
from aaclip.models.adapters import Adapter, make_final_projection, make_head
from aaclip.models.backbone import make_model
from aaclip.models.text import TextAdapter
from aaclip.models.vision import ImageAdapter
from aaclip.models.vv_attention import attend_by_values, read_vv_patches
from clip_common.config import load_config

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def make_adapter(kind, width, norm="tokens"):
    return Adapter(AdapterConfig(kind=kind, norm=norm), width, weight=0.1, grid=True)


def test_the_three_adapters_are_what_their_documents_say():
    assert [type(layer) for layer in make_adapter("bottleneck", 8)] == [nn.Linear, nn.LeakyReLU, nn.Linear]
    assert (make_adapter("bottleneck", 8)[0].out_features, make_adapter("mlp", 8)[0].out_features) == (4, 8)
    assert make_adapter("bottleneck", 8)[1].negative_slope == 0.2
    linear = make_adapter("linear", 8)
    assert (linear[0].bias, linear[1].negative_slope) == (None, 0.01)
    x = torch.randn(2, 5, 8)
    expected = x @ linear[0].weight.T
    torch.testing.assert_close(linear(x), torch.where(expected > 0, expected, 0.01 * expected))


def test_matrices_start_xavier_uniform():
    torch.manual_seed(0)
    weight = make_adapter("linear", 400)[0].weight.detach()
    bound = (6 / 800) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_heads_with_and_without_activation():
    assert len(make_head(8, 4, activation="none")) == 1
    assert make_head(8, 4, activation="none")[0].bias is None
    assert make_head(8, 4, activation="relu")[1].negative_slope == 0.2


def test_the_final_map_starts_from_clip_s_or_from_random_numbers():
    start = torch.randn(8, 4)
    x = torch.randn(3, 8)
    torch.testing.assert_close(make_final_projection(8, 4, start=start)(x), x @ start)
    assert isinstance(make_final_projection(8, 4, start=None)[1], nn.LeakyReLU)


def test_the_mix_by_hand():
    x, a = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    assert make_adapter("linear", 2).mix(x, a).tolist() == [[pytest.approx(2.7), pytest.approx(4.1)]]
    assert make_adapter("linear", 2, "none").mix(x, a).tolist() == [[pytest.approx(2.7), pytest.approx(3.8)]]
    silent = make_adapter("linear", 2).mix(x, torch.zeros(1, 2))
    assert silent.tolist() == [[pytest.approx(2.7), pytest.approx(3.6)]]


def reference_text(tower, module, tokens):
    """Every position, every block, as the document has it."""
    text = tower.trunk.text
    x = text.token_embedding(tokens) + text.positional_embedding
    for number, block in enumerate(text.transformer.resblocks):
        x = block(x, attn_mask=text.attn_mask)
        if number < len(module.layers):
            a = module.layers[number](x)
            a = a * x.norm(dim=-1, keepdim=True) / a.norm(dim=-1, keepdim=True)
            x = 0.1 * a + 0.9 * x
    return module.final(text.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)])


@pytest.mark.parametrize("kind", ["bottleneck", "mlp", "linear"])
@pytest.mark.parametrize("final", ["clip", "xavier"])
def test_text_equals_the_reference_at_full_length(bundle, kind, final):
    module = TextAdapter(bundle.text_tower, AdapterConfig(kind=kind, final_init=final, text_blocks=3))
    tokens = bundle.tokenizer(["a photo of a damaged metal nut.", "a nut."])
    torch.testing.assert_close(module(bundle.text_tower, tokens), reference_text(bundle.text_tower, module, tokens))


def test_untrained_text_of_weight_zero_is_clip(bundle):
    module = TextAdapter(bundle.text_tower, AdapterConfig(text_weight=0.0))
    tokens = bundle.tokenizer(["a photo of a damaged metal nut."])
    torch.testing.assert_close(module(bundle.text_tower, tokens), bundle.text_tower(tokens))


def reference_image(tower, module, images):
    visual = tower.trunk.visual
    x, tokens = tower.trunk.embed(images), []
    for number, block in enumerate(visual.transformer.resblocks):
        x = block(x)
        if number < len(module.layers):
            a = module.layers[number](x)
            a = a * x.norm(dim=-1, keepdim=True) / a.norm(dim=-1, keepdim=True)
            x = 0.1 * a + 0.9 * x
        if number + 1 in module.levels:
            tokens.append(visual.ln_post(x[:, 1:]))
    patches = [normalize(module.segmentation[i](t), dim=-1) for i, t in enumerate(tokens)]
    if module.detection is None:
        return patches, normalize(tower(images).pooled, dim=-1)
    if module.pools_levels:
        return patches, torch.stack([normalize(module.detection(t), dim=-1).mean(1) for t in tokens]).mean(0)
    embedded = normalize(module.detection(tokens[-1]), dim=-1)
    if module.query is None:
        return patches, embedded.mean(1)
    weights = (embedded @ module.query.weight[0]).softmax(1)
    return patches, torch.einsum("bl,bld->bd", weights, embedded)


@pytest.mark.parametrize("detection", ["class_token", "mean", "attention", "levels"])
@pytest.mark.parametrize("activation", ["relu", "none"])
def test_image_equals_the_reference(bundle, activation, detection):
    heads = HeadConfig(activation=activation, detection=detection)
    module = ImageAdapter(bundle.image_tower, levels=[2, 4, 8], adapters=AdapterConfig(), heads=heads)
    if module.query is not None:
        torch.nn.init.normal_(module.query.weight, std=5.0)
    patches, embedding = reference_image(bundle.image_tower, module, IMAGES)
    features = module(bundle.image_tower, IMAGES)
    torch.testing.assert_close(features.levels, patches)
    torch.testing.assert_close(features.detection, embedding)


def test_an_untrained_query_takes_the_mean_and_a_trained_one_has_gradients(bundle):
    found, modules = [], []
    for detection in ("mean", "attention"):
        torch.manual_seed(0)
        heads = HeadConfig(detection=detection)
        modules.append(ImageAdapter(bundle.image_tower, levels=[4, 8], adapters=AdapterConfig(), heads=heads))
        found.append(modules[-1](bundle.image_tower, IMAGES).detection)
    torch.testing.assert_close(found[0], found[1], atol=1e-7, rtol=1e-6)
    assert modules[1].state_dict().keys() - modules[0].state_dict().keys() == {"query.weight"}
    (gradient,) = torch.autograd.grad(found[1][:, 0].sum(), modules[1].query.weight)  # none for the shared tower
    assert gradient.abs().sum() > 0


class ValueAttention(nn.Module):
    """V-V attention as research code has it: batch first, its own loop over heads."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        width, heads = x.shape[-1], self.attention.num_heads
        v = x @ self.attention.in_proj_weight[-width:].T + self.attention.in_proj_bias[-width:]
        parts = []
        for part in v.split(width // heads, dim=-1):
            scores = part @ part.transpose(1, 2) / (width // heads) ** 0.5
            parts.append(scores.softmax(dim=-1) @ part)
        return self.attention.out_proj(torch.cat(parts, dim=-1))


@pytest.mark.parametrize("axis", ["space", "batch"])
@pytest.mark.parametrize(("blocks", "levels"), [(6, [2, 4, 6, 8]), (3, [1, 5]), (8, [8]), (2, [1, 2])])
def test_surgery_equals_a_copy_with_replaced_attention(bundle, axis, blocks, levels):
    visual = copy.deepcopy(bundle.image_tower.trunk.visual)
    x, expected = bundle.image_tower.trunk.embed(IMAGES), []
    for number, block in enumerate(visual.transformer.resblocks, start=1):
        if number > 8 - blocks:
            inner = block.ln_1(x)
            attend = ValueAttention(block.attn)
            x = x + (attend(inner) if axis == "space" else attend(inner.transpose(0, 1)).transpose(0, 1))
            x = x + block.mlp(block.ln_2(x))
        else:
            x = block(x)
        if number in levels:
            expected.append(normalize(visual.ln_post(x[:, 1:]) @ visual.proj, dim=-1))
    plain = normalize(bundle.image_tower(IMAGES).pooled, dim=-1)[:, None]
    found = read_vv_patches(bundle.image_tower, IMAGES, levels=levels, blocks=blocks, axis=axis)
    torch.testing.assert_close(found, [patches + plain for patches in expected])


def test_over_space_an_image_is_the_same_in_any_batch_and_over_the_batch_it_is_not(bundle):
    block = bundle.image_tower.trunk.blocks[0]
    x = torch.randn(3, 17, 32)
    for axis, same in (("space", True), ("batch", False)):
        alone = attend_by_values(block, x[:1], axis=axis)
        assert torch.allclose(attend_by_values(block, x, axis=axis)[:1], alone, atol=1e-5) is same


def test_sizes_of_a_small_tower_keep_the_shares_of_the_large_one(bundle):
    model = make_model(bundle, Config())
    assert model.levels == [2, 4, 6, 8]
    assert model.vv_blocks == 6
    assert (len(model.text_adapter.layers), len(model.image_adapter.layers)) == (1, 2)


def test_only_adapters_have_gradients_and_the_towers_stay_in_eval_mode(bundle):
    model = make_model(bundle, Config()).train()
    text = normalize(model.encode_text(["a mug.", "a damaged mug."]), dim=-1).T.expand(3, -1, -1)
    evidence = model(IMAGES, text)
    (sum(level.sum() for level in evidence.levels) + evidence.classification.sum()).backward()
    for name, parameter in model.named_parameters():
        inside = name.startswith(("image_adapter", "text_adapter"))
        assert (parameter.grad is not None) is inside, name
    assert not model.image_tower.training
    assert not model.text_tower.training


def test_evidence_is_the_difference_of_the_products(bundle):
    model = make_model(bundle, Config())
    text = normalize(torch.randn(3, 24, 2), dim=1)
    evidence = model(IMAGES, text)
    features = model.image_adapter(model.image_tower, IMAGES)
    logits = 100 * features.levels[1] @ text
    torch.testing.assert_close(evidence.levels[1].flatten(1), logits[..., 1] - logits[..., 0], atol=1e-4, rtol=1e-4)
    scores = torch.einsum("bd,bdc->bc", features.detection, text)
    torch.testing.assert_close(evidence.classification, scores[:, 1] - scores[:, 0], atol=1e-6, rtol=1e-4)


def test_plain_clip_reads_its_own_projection(bundle):
    plain = PlainCLIP(bundle)
    text = normalize(torch.randn(3, 24, 2), dim=1)
    evidence = plain(IMAGES, text)
    pooled = normalize(bundle.image_tower(IMAGES).pooled, dim=-1)
    torch.testing.assert_close(
        evidence.classification, ((pooled[:, :, None] * text).sum(1) * torch.tensor([-1.0, 1.0])).sum(1)
    )
    last = normalize(bundle.image_tower(IMAGES).patches @ bundle.image_tower.trunk.visual.proj, dim=-1)
    expected = 100 * ((last @ text)[..., 1] - (last @ text)[..., 0])
    torch.testing.assert_close(evidence.levels[-1].flatten(1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("levels=[9]", "from 1 to 8"),
        ("levels=[4, 2]", "rising order"),
        ("adapters.image_blocks=9", "has 8 blocks"),
        ("adapters.text_adapt_until=5", "has 4 blocks"),
        ("surgery.blocks=9", "has 8 blocks"),
    ],
)
def test_blocks_that_do_not_exist_are_one_line(bundle, override, said):
    with pytest.raises(ValueError, match=said) as error:
        make_model(bundle, load_config(Config, overrides=[override]))
    assert "\n" not in str(error.value)


def test_the_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        linear = [make_adapter("linear", 768) for _ in range(3)], [make_adapter("linear", 1024) for _ in range(6)]
        text = [*linear[0], make_final_projection(768, 768, start=None)]
        heads = [make_head(1024, 768, activation="none") for _ in range(5)]
    assert sum(map(parameters, text)) == pytest.approx(2.4e6, rel=0.02)
    assert sum(map(parameters, [*linear[1], *heads])) == pytest.approx(10.2e6, rel=0.02)
    assert len(text) + len(linear[1]) + len(heads) == 15
