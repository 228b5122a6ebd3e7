"""Cross-attention against five lines, its sizes, and what its contexts hold."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from aaclip.config import Config, CrossAttentionConfig
from aaclip.models.backbone import make_model
from aaclip.models.contexts import Contexts, RunningContexts, TextContexts, round_half
from aaclip.models.cross_attention import CrossAttentionModule, ImageCrossAttentionModule
from aaclip.models.vv_attention import read_vv_patches
from clip_common.config import ConfigError, load_config

ON = "cross_attention.enabled=true"
TEXTS = ["a mug.", "a photo of a damaged mug."]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def model_of(bundle, *overrides):
    torch.manual_seed(0)
    return make_model(bundle, load_config(Config, overrides=[ON, *overrides])).eval()


def reference(module, x_TF, context_NC, *, scale=0.1, match=True):
    """One text or image, head by head."""
    q, k, v = module.q_proj(x_TF), module.k_proj(context_NC), module.v_proj(context_NC)
    parts = [part.chunk(module.heads, dim=-1) for part in (q, k, v)]
    heads = [(q @ k.T / q.shape[-1] ** 0.5).softmax(dim=-1) @ v for q, k, v in zip(*parts, strict=True)]
    c = module.out_proj(torch.cat(heads, dim=-1))
    return x_TF + scale * (c * x_TF.norm(dim=-1, keepdim=True) / (c.norm(dim=-1, keepdim=True) + 1e-6) if match else c)


def moved(module):
    """Biases that are not zero, so that they count."""
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


@pytest.mark.parametrize(
    ("settings", "scale", "match"),
    [({}, 0.1, True), ({"weight": 1.0, "norm_match": False}, 1.0, False), ({"weight": 0.3}, 0.3, True)],
)
def test_both_modules_equal_the_reference(settings, scale, match):
    torch.manual_seed(0)
    config = CrossAttentionConfig(heads=4, **settings)
    text = moved(CrossAttentionModule(config, width=16, context_width=24))
    image = moved(ImageCrossAttentionModule(config, width=32, context_width=16))
    for module, width, context_width in ((text, 16, 24), (image, 32, 16)):
        x_BTF, context_2NC = torch.randn(6, 5, width), torch.randn(2, 7, context_width)
        expected = [reference(module, x_BTF[i], context_2NC[i // 3], scale=scale, match=match) for i in range(6)]
        torch.testing.assert_close(module(x_BTF, context_2NC), torch.stack(expected))


def test_the_scaled_context_by_hand():
    """One head of width 1; the output map makes (3, 4) of any value 1: norm 5, as that of the tokens (0, 5)."""
    module = CrossAttentionModule(CrossAttentionConfig(heads=1, weight=0.1), width=2, context_width=1).eval()
    for linear in (module.q_proj, module.k_proj, module.v_proj):
        nn.init.ones_(linear.weight)
    module.out_proj.weight.data = torch.tensor([[1.5, 1.5], [2.0, 2.0]])
    found = module(torch.tensor([[[0.0, 5.0]]]), torch.ones(1, 3, 1))
    torch.testing.assert_close(found, torch.tensor([[[0.3, 5.4]]]))


def test_rows_read_the_context_they_name_and_padding_is_not_seen():
    module = moved(ImageCrossAttentionModule(CrossAttentionConfig(heads=4), width=32, context_width=16))
    contexts = {"mug": torch.randn(5, 16), "star": torch.randn(9, 16)}
    x_BTF, names = torch.randn(3, 4, 32), ["star", "mug", "star"]
    tokens, mask, rows = TextContexts.of(contexts, names)
    assert (tokens.shape, mask.sum(dim=1).tolist(), rows.tolist()) == ((2, 9, 16), [9, 5], [0, 1, 0])
    expected = torch.stack([reference(module, x, contexts[name]) for x, name in zip(x_BTF, names, strict=True)])
    torch.testing.assert_close(module(x_BTF, tokens, mask_GN=mask, rows_B=rows), expected)
    one = TextContexts.of(contexts, ["mug"])
    assert (one.mask_GN, one.rows_B) == (None, None)
    torch.testing.assert_close(module(x_BTF, one.tokens_GNF)[1], expected[1])


def test_weights_start_xavier_uniform_and_biases_at_zero():
    module = ImageCrossAttentionModule(CrossAttentionConfig(), width=512, context_width=256)
    for linear in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
        bound = (6 / sum(linear.weight.shape)) ** 0.5
        assert linear.weight.abs().max() <= bound
        assert linear.weight.detach().std() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert not linear.bias.any()


def test_the_published_sizes_and_names():
    with torch.device("meta"):
        text = CrossAttentionModule(CrossAttentionConfig(), width=768, context_width=768)
        image = ImageCrossAttentionModule(CrossAttentionConfig(), width=1024, context_width=768)
    assert sum(parameter.numel() for parameter in text.parameters()) == 2_362_368
    assert sum(parameter.numel() for parameter in image.parameters()) == 2_755_840
    names = {f"{part}_proj.{what}" for part in ("q", "k", "v", "out") for what in ("weight", "bias")}
    assert text.state_dict().keys() == image.state_dict().keys() == names
    assert image.q_proj.weight.shape == (768, 1024)
    assert image.out_proj.weight.shape == (1024, 768)


def test_the_inventory_lists_both(bundle):
    rows = {name: (count, state) for name, count, state in model_of(bundle).inventory()}
    text = 2 * (16 * 16 + 16) + 2 * (24 * 16 + 16)
    image = (32 * 16 + 16) + 2 * (16 * 16 + 16) + (16 * 32 + 32)
    assert rows["text cross-attention"] == (text, "stage 1")
    assert rows["image cross-attention"] == (image, "stage 2")
    assert "text cross-attention" not in {name for name, *_ in make_model(bundle, Config()).inventory()}


def test_heads_that_do_not_divide_the_width_are_one_line(bundle):
    with pytest.raises(ValueError, match=r"cross_attention.heads=5: must divide 16"):
        model_of(bundle, "cross_attention.heads=5")
    for wrong in ("heads=0", "dropout=1", "weight=-1"):
        with pytest.raises(ConfigError, match=wrong.split("=")[0]):
            load_config(Config, overrides=[f"cross_attention.{wrong}"])


def test_dropout_acts_in_training_alone():
    module = CrossAttentionModule(CrossAttentionConfig(heads=4, dropout=0.5), width=16, context_width=24)
    x, context = torch.randn(2, 3, 16), torch.randn(1, 7, 24)
    assert torch.equal(module.eval()(x, context), module(x, context))
    module.train()
    assert not torch.equal(module(x, context), module(x, context))


@pytest.mark.parametrize("still", ["cross_attention.weight=0", "cross_attention.scale=gate"])
def test_weight_0_and_a_closed_gate_are_the_base_bit_for_bit(bundle, still):
    model = model_of(bundle, still)
    torch.manual_seed(0)
    base = make_model(bundle, Config()).eval()
    assert model.text_cross_attn.is_no_op
    context = TextContexts.of({"mug": model.read_text_context(TEXTS)}, ["mug"])
    with torch.no_grad():
        assert torch.equal(model.encode_text(TEXTS, torch.randn(1, 16, 24)), base.encode_text(TEXTS))
        for one, other in zip(model.features(IMAGES, context).levels, base.features(IMAGES).levels, strict=True):
            assert torch.equal(one, other)
        model.text_cross_attn.weight = model.image_cross_attn.weight = 0.1
        for module in (model.text_cross_attn, model.image_cross_attn):
            module.gate = None
        assert not torch.equal(model.encode_text(TEXTS, torch.randn(1, 16, 24)), base.encode_text(TEXTS))
        assert not torch.equal(model.features(IMAGES, context).levels[0], base.features(IMAGES).levels[0])


def test_the_places_in_both_towers(bundle):
    """After the first block, before its adapter."""
    model = model_of(bundle, "adapters.text_blocks=2")
    context_LD, tokens = torch.randn(9, 24), bundle.tokenizer(TEXTS)
    text, adapter = bundle.text_tower.trunk.text, model.text_adapter

    def mixed(x, layer):
        a = layer(x)
        return 0.9 * x + 0.1 * a * x.norm(dim=-1, keepdim=True) / a.norm(dim=-1, keepdim=True)

    x = text.token_embedding(tokens) + text.positional_embedding
    for number, block in enumerate(text.transformer.resblocks):
        x = block(x, attn_mask=text.attn_mask)
        if number == 0:
            x = torch.stack([reference(model.text_cross_attn, one, context_LD) for one in x])
        x = mixed(x, adapter.layers[number]) if number < 2 else x
    expected = adapter.final(text.ln_final(x)[torch.arange(2), tokens.argmax(dim=-1)])
    torch.testing.assert_close(model.encode_text(TEXTS, context_LD[None]), expected)

    visual, context_NF = bundle.image_tower.trunk.visual, torch.randn(9, 16)
    x, levels = bundle.image_tower.trunk.embed(IMAGES), []
    for number, block in enumerate(visual.transformer.resblocks, start=1):
        x = block(x)
        if number == 1:
            x = torch.stack([reference(model.image_cross_attn, one, context_NF) for one in x])
        x = mixed(x, model.image_adapter.layers[number - 1]) if number <= 2 else x
        if number in model.levels:
            head = model.image_adapter.segmentation[len(levels)]
            levels.append(normalize(head(visual.ln_post(x[:, 1:])), dim=-1))
    torch.testing.assert_close(model.features(IMAGES, TextContexts(context_NF[None])).levels, levels)


def test_texts_of_several_classes_attend_to_their_own_context(bundle):
    model, contexts_2LD = model_of(bundle), torch.randn(2, 9, 24)
    together = model.encode_text([*TEXTS, *TEXTS], contexts_2LD)
    apart = [model.encode_text(TEXTS, context_LD[None]) for context_LD in contexts_2LD]
    torch.testing.assert_close(together, torch.cat(apart))


@pytest.mark.parametrize("padding", ["masked", "kept"])
def test_the_text_context_is_the_prompts_tokens(bundle, padding):
    model = model_of(bundle, f"cross_attention.padding={padding}")
    tokens, text = bundle.tokenizer(TEXTS), bundle.text_tower.trunk.text
    x = text.token_embedding(tokens) + text.positional_embedding
    x = text.transformer.resblocks[0](x, attn_mask=text.attn_mask)
    a = model.text_adapter.layers[0](x)
    x = normalize(0.9 * x + 0.1 * a * x.norm(dim=-1, keepdim=True) / a.norm(dim=-1, keepdim=True), dim=-1)
    real = [one[: end + 1] for one, end in zip(x, tokens.argmax(dim=-1), strict=True)]
    expected = torch.cat(real) if padding == "masked" else x.flatten(0, 1)
    found = model.read_text_context(TEXTS)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(found, round_half(found))
    assert not found.requires_grad


def test_the_image_context_of_a_class_and_its_running_mean(bundle):
    contexts = RunningContexts(["mug", "nut", "star"], patches=16, width=24)
    patches = read_vv_patches(bundle.image_tower, IMAGES, levels=[2, 8], blocks=6, axis="space")[0]
    mug, star = patches[[0, 2]].mean(dim=0), patches[1]
    torch.testing.assert_close(contexts.take(patches, ["mug", "star", "mug"]), torch.stack([mug, star]))
    contexts.take(patches[:1], ["mug"])
    stored = contexts.stored()
    assert stored.keys() == {"mug", "star"}  # no nut was seen
    torch.testing.assert_close(stored["mug"], round_half((2 * mug + patches[0]) / 3))
    assert torch.equal(stored["star"], round_half(star))
    again = RunningContexts(["mug", "nut", "star"], patches=16, width=24)
    again.load_state_dict(copy.deepcopy(contexts.state_dict()))
    assert torch.equal(again.take(patches[:1], ["mug"]), contexts.take(patches[:1], ["mug"]))
    assert torch.equal(again.stored()["mug"], contexts.stored()["mug"])
    whole = RunningContexts(["mug", "star"], patches=16, width=24, over="batch").take(patches, ["mug", "star", "mug"])
    torch.testing.assert_close(whole, patches.mean(dim=0).expand(2, -1, -1))


def test_a_thing_that_was_not_trained_on_has_the_mean_context():
    contexts = Contexts(image={"mug": torch.zeros(2, 3), "star": torch.ones(2, 3)})
    assert torch.equal(contexts.image_of("star"), torch.ones(2, 3))
    assert torch.equal(contexts.image_of("bell"), torch.full((2, 3), 0.5))


def test_gradients_reach_the_modules_and_not_the_contexts(bundle):
    model = model_of(bundle).train()
    text_CD = model.encode_text(TEXTS, torch.randn(1, 16, 24))
    levels = model.patch_evidence(IMAGES, normalize(torch.randn(3, 24, 2), dim=1), TextContexts(torch.randn(1, 9, 16)))
    (text_CD.sum() + sum(level.sum() for level in levels)).backward()
    for module in (model.text_cross_attn, model.image_cross_attn):
        assert all(parameter.grad is not None for parameter in module.parameters())
