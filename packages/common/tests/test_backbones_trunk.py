"""The walk through a trunk by hand: embed, blocks, readout give the bits that the whole forward gives."""

import pytest
import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention

from clip_common.backbones import BackboneError, load_clip
from clip_common.backbones.open_clip_blocks import AttentionBlock, without_attention_maps
from clip_common.backbones.open_clip_trunks import OpenClipVision
from clip_common.backbones.vision_models import TransformersVision

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}
CAPTIONS = ["a dog", "a man in a red shirt rides a horse along the beach at sunset", "", "two cats"]
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small(*, vision=None, text=None, **options):
    config = {"embed_dim": 32, "vision_cfg": VISION | (vision or {}), "text_cfg": TEXT | (text or {})} | options
    return load_clip("small", model_config=config)


def walk(trunk, inputs):
    """Tokens after every block, the embedding first."""
    states = [trunk.embed(inputs)]
    for block in trunk.blocks:
        states.append(block(states[-1]))
    return states


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"ls_init_value": 0.5, "no_ln_pre": True},
        {"pool_type": "avg", "final_ln_after_pool": True},
        {"pool_type": "avg", "pos_embed_type": "sin_cos_2d"},
        {"qk_norm": True, "scale_heads": True},
        {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
        {"attentional_pool": "parallel", "attn_pooler_queries": 4, "attn_pooler_heads": 2},
        {"attentional_pool": "cascade", "attn_pooler_queries": 4, "attn_pooler_heads": 2},
    ],
    ids=["clip", "layer-scale", "average", "sines", "custom-blocks", "coca", "parallel", "cascade"],
)
def test_the_walk_through_a_vision_transformer_is_open_clips_forward_bit_for_bit(vision, grad):
    trunk = small(vision=vision).image_tower.trunk
    layers = tuple(range(1, 4))
    with torch.set_grad_enabled(grad):
        states = walk(trunk, IMAGES)
        output = trunk(IMAGES, layers)
        with without_attention_maps():
            assert torch.equal(trunk.readout(states[-1]), trunk.visual(IMAGES)[0])
        assert torch.equal(trunk.readout(states[-1]), output.pooled)
        for number in layers:
            assert torch.equal(states[number], output.layers[number])
    assert trunk.embed_dim == output.pooled.shape[-1] == 32


def test_the_embedding_is_open_clips_own():
    trunk = small().image_tower.trunk
    assert torch.equal(trunk.embed(IMAGES), trunk.visual._embeds(IMAGES))


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_block_gives_what_the_block_of_open_clip_gives_and_the_same_gradient(quick_gelu):
    block = small(quick_gelu=quick_gelu).image_tower.trunk.blocks[0]
    assert isinstance(block, AttentionBlock)
    x = torch.randn(2, 17, 32, requires_grad=True)
    weights = [x, *block.module.parameters()]
    found, expected = (run(x).square().sum() for run in (block, block.module))
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(loss, weights) for loss in (found, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_images_go_through_a_block_a_few_at_a_time(monkeypatch):
    trunk = small().image_tower.trunk
    whole = [*walk(trunk, IMAGES), trunk.features(IMAGES)]
    calls = []
    monkeypatch.setattr(AttentionBlock, "_run", lambda *given, run=AttentionBlock._run: calls.append(1) or run(*given))
    monkeypatch.setattr("clip_common.backbones.open_clip_blocks.IN_CACHE", 2 * 17)  # two images of 16 patches
    parts = [*walk(trunk, IMAGES), trunk.features(IMAGES)]
    assert len(calls) == 2 * 3 + 2 * 2  # two parts a block, of three and of two blocks
    for part, one in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("tokens", "kept"), [(129, 0), (128, 1)])  # above four times the width, and not
def test_a_step_keeps_no_hidden_tokens_of_a_frozen_block_with_many_tokens(tokens, kept):
    trunk = small().image_tower.trunk.requires_grad_(False)
    shapes: list[tuple[int, ...]] = []
    x = torch.randn(2, tokens, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda one: shapes.append(tuple(one.shape)) or one, lambda one: one):
        trunk.blocks[0](x).sum().backward()
    assert shapes.count((2, tokens, 4 * 32)) == kept


def test_the_parts_of_a_block_make_another_attention():
    block = small().image_tower.trunk.blocks[0]
    module, x = block.module, torch.randn(2, 17, 32)
    value = block.value(block.norm(x))
    assert value.shape == (2, 2, 17, 16)
    found = block.add_attention(x, block.project(block.join(scaled_dot_product_attention(value, value, value))))
    weight, bias = module.attn.in_proj_weight[64:], module.attn.in_proj_bias[64:]
    v = module.ln_1(x) @ weight.T + bias
    heads = [(part @ part.transpose(1, 2) / 4).softmax(dim=-1) @ part for part in v.split(16, dim=-1)]
    torch.testing.assert_close(found, x + module.attn.out_proj(torch.cat(heads, dim=-1)))
    torch.testing.assert_close(block.add_mlp(x), x + module.mlp(module.ln_2(x)))


def test_patches_of_any_block_go_through_the_norm_and_projection_of_the_pooled_features():
    trunk = small().image_tower.trunk
    assert trunk.projects_patches
    states = walk(trunk, IMAGES)
    visual = trunk.visual
    assert torch.equal(trunk.norm(states[1][:, 1:]), visual.ln_post(states[1][:, 1:]))
    assert torch.equal(trunk.project(states[1][:, 1:]), visual.ln_post(states[1][:, 1:]) @ visual.proj)
    torch.testing.assert_close(trunk.project(states[-1])[:, 0], trunk(IMAGES).pooled)
    pooler = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
    assert not small(vision=pooler).image_tower.trunk.projects_patches


@pytest.mark.parametrize(
    "text", [{}, {"proj_bias": True}, {"proj_type": "none"}, {"pool_type": "eos", "eos_id": 49407}]
)
@pytest.mark.parametrize("grad", [True, False])
def test_the_walk_through_a_text_transformer_is_its_forward_bit_for_bit(text, grad):
    bundle = small(text=text)
    trunk, tokens = bundle.text_tower.trunk, bundle.tokenizer(CAPTIONS)
    with torch.set_grad_enabled(grad):
        states = walk(trunk, tokens)
        assert torch.equal(trunk.readout(states[-1], tokens), trunk(tokens))
    assert [tuple(state.shape) for state in states] == [(4, 16, 32)] * 4
    assert len(states) == trunk.depth + 1


def test_another_projection_takes_the_place_of_a_text_tower_s_own():
    bundle = small()
    trunk, tokens = bundle.text_tower.trunk, bundle.tokenizer(CAPTIONS)
    last = walk(trunk, tokens)[-1]
    torch.testing.assert_close(trunk.readout(last, tokens, projection=lambda x: x) @ trunk.projection, trunk(tokens))


def vision_model(kind):
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2))
    if kind == "registers":
        config = transformers.Dinov2WithRegistersConfig(**sizes, mlp_ratio=2, num_register_tokens=2)
        return transformers.Dinov2WithRegistersModel(config)
    if kind == "clip":
        return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, intermediate_size=64))
    if kind == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=64))
    config = transformers.SiglipVisionConfig(**sizes, intermediate_size=64, vision_use_head=kind == "siglip")
    return transformers.SiglipVisionModel(config)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("kind", ["dinov2", "registers", "clip", "siglip", "siglip-headless"])
def test_the_walk_through_a_vision_model_of_transformers_is_its_forward_bit_for_bit(kind, grad):
    trunk = TransformersVision(vision_model(kind).eval())
    with torch.set_grad_enabled(grad):
        states, output = walk(trunk, IMAGES), trunk(IMAGES, (1, 2, 3))
        assert torch.equal(trunk.readout(states[-1]), output.pooled)
        for number in (1, 2, 3):
            assert torch.equal(states[number], output.layers[number])


def test_a_trunk_without_a_walk_says_so_in_one_line():
    tokens = torch.zeros(1, 17, 32)
    resnet = small(vision={"layers": [1, 1, 1, 1], "width": 8, "patch_size": None}).image_tower.trunk
    timm = {"timm_model_name": "test_vit", "timm_pool": "avg", "image_size": 160}
    timm = load_clip("timm", model_config={"embed_dim": 24, "vision_cfg": timm, "text_cfg": TEXT}).image_tower.trunk
    siglip = small(text={"no_causal_mask": True, "pool_type": "last"}).text_tower.trunk
    assert not resnet.blocks
    for trunk in (resnet, timm, TransformersVision(vision_model("vit").eval())):
        for step in (lambda trunk=trunk: trunk.embed(IMAGES), lambda trunk=trunk: trunk.readout(tokens)):
            with pytest.raises(
                BackboneError, match=f"{type(trunk).__name__} cannot be run block by block: use"
            ) as caught:
                step()
            assert "\n" not in str(caught.value)
    with pytest.raises(BackboneError, match="cannot be run block by block"):
        siglip.embed(tokens)
    with pytest.raises(BackboneError, match="cannot be run block by block"):
        siglip.readout(tokens, tokens)


def test_weights_do_not_know_of_the_walk():
    trunk = small().image_tower.trunk
    names = set(trunk.state_dict())
    _ = trunk.blocks
    assert isinstance(trunk, OpenClipVision)
    assert set(trunk.state_dict()) == names
